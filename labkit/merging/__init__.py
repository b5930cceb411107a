"""What is merged, and how: a recipe, the plan that it becomes, the formula, and the rounding.

A plan says what happens to every tensor before a byte is written (its ledger). May import `models`
and the folders above it in CONTRIBUTING.md's table; `Plan.write` alone calls one below, `writing`.
"""
