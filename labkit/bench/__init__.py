"""`Lab`: the whole bench in one cell, with its panel, its answers and its pages of HTML.

May import all folders above it in CONTRIBUTING.md's table.
"""
