"""The book: README, notebooks with outputs, reference and documents as pages that work offline."""
