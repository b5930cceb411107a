"""Carries a plan out: the engine that streams a model, side files, receipt, card, `verify`.

May import `figures` and the folders above it in CONTRIBUTING.md's table.
"""
