"""Tables measured from deltas alone: norms, spectra, what rounding loses, overlap.

No model is run. One `Column` says all there is to say of a table's column. May import `merging` and
the folders above it in CONTRIBUTING.md's table.
"""
