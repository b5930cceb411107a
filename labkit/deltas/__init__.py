"""What can be added to one tensor of the base: a product of factors, or what depends on the base.

A LoRA's `s·B·A` is kept as its factors, from which norms, singular values and cosines come. An
embedding that was trained whole adds `W_adapter − W`, which needs the base's numbers. May import
`files` and the folders above it in CONTRIBUTING.md's table.
"""
