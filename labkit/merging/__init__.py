"""The promise: a recipe, its plan and ledger, the formula of the merge, and the rounding.

Nothing here writes a file but `recipe.yaml`. May import `models` and what is above it; `Plan.write`
alone reaches down, to `writing`.
"""
