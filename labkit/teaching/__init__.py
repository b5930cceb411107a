"""Questions of the notebooks whose answers can be checked, with hints and solutions.

`questions.yaml` has them all. May import all folders above it in CONTRIBUTING.md's table.
"""
