"""What can be added to one tensor: low-rank products, and changes that need the base's numbers.

Norms, singular values and cosines come from the factors, never from the dense product. May import
`files` and what is above it.
"""
