"""The report: studies read from the storage, turned into figures with their numbers, on one self-contained page."""
