"""`python -m hpsearch` is the command `hpsearch`."""

from hpsearch.cli.main import main

if __name__ == "__main__":
    main()
