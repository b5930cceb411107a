"""What is measured from a model's behaviour: next tokens, NLL, KL.

May import `inference` and what is above it.
"""
