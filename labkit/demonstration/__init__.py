"""The embedded default: the demo's base model, its two adapters, and how they were made.

`train.py` and `measure.py` are scripts; `data/` is what they read. May import `figures` and what
is above it.
"""
