"""The command line as a module: `python -m labkit`."""

from labkit.cli.app import main

if __name__ == "__main__":
    main()
