"""The list of layer weights as a value: parse, ramp, presets, resample, calls as data.

Pure Python, without numpy. May import `labkit.errors` alone.
"""
