"""A live model whose layer weights can be turned: load, attach adapters, prompts, answers.

torch, transformers and PEFT are used here. May import `merging` and the folders above it in
CONTRIBUTING.md's table.
"""
