"""The command line: one file for each group of commands, and `main`.

Each command imports what it needs when it runs, so that `labkit --help` starts at once. May import
all other folders.
"""

from labkit.cli.app import main as main
