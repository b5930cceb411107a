"""Widgets for a notebook: the `GradientEditor` (Python, JavaScript, CSS) and plain sliders.

They know weights and nothing of models. May import `gradients` and `labkit.errors` alone.
"""
