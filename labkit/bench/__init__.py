"""`Lab`: the whole bench in one cell, with its panel, its answers and its pages of HTML.

May import everything above but `demonstration` and `cli`.
"""
