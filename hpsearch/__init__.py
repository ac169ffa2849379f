"""hpsearch: hyperparameter search for small image classifiers."""
