"""`python -m rbft`."""

from rbft.cli import main

if __name__ == "__main__":
    main()
