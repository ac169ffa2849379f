"""A network and a data set that hpsearch finds through the entry points in pyproject.toml."""
