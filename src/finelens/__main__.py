"""``python -m finelens``, and where the command ``finelens`` begins: Ctrl-C before anything is imported ends it as Ctrl-C later does."""

import sys


def main() -> None:
    """Run the command."""
    try:
        from finelens.cli import main as run
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command begins again\n")
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
