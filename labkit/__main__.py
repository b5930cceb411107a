"""`python -m labkit` is the command line."""

from labkit.cli import program

program()
