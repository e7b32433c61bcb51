"""``python -m distilbert`` is the ``distilbert`` command."""

from distilbert.cli import main

if __name__ == "__main__":
    main()
