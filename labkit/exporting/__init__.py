"""Merged models in the formats of programs that run models: converted, checked, described.

The tools of each format do the work, in processes of their own. May import `publishing`, the demo
and the folders above them in CONTRIBUTING.md's table.
"""
