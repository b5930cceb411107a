"""The demo: its base model, its two adapters, their texts, and how they were made.

`train.py` and `measure.py` are scripts; `data/` is what they read. May import all folders above it
in CONTRIBUTING.md's table.
"""
