"""Carries a plan out: the engine that streams a model, side files, receipt, card, `verify`.

May import `figures` and what is above it.
"""
