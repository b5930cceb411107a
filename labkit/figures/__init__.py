"""Every matplotlib figure, and the one palette that they share with the widgets.

Figures take tables and gradients, and measure nothing. May import `surveys` and what is above
it.
"""
