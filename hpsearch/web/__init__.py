"""The dashboard: optuna-dashboard behind a guard, and the pages that it lacks."""
