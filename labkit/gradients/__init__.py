"""The list of layer weights as a value: parsed, made by a ramp or a preset, stretched, shown.

`calls.py` reads the call that makes a gradient from a recipe, such as `ramp`, as data. Pure Python,
without numpy. May import `labkit.errors` alone; a gradient's picture comes from `figures`.
"""
