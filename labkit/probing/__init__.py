"""What is measured from a model's behaviour: how likely texts are, and which layers matter for it.

Negative log-likelihoods (NLL) of texts, divergences from the base (KL), next tokens, sensitivities
and attributions of layers, all with intervals. May import `inference` and the folders above it in
CONTRIBUTING.md's table.
"""
