"""``python -m finelens``."""

from finelens.cli import main

if __name__ == "__main__":
    main()
