"""What is opened: a base model (`Checkpoint`), an adapter, and the kinds of parts that they have.

Names of modules and the configs of PEFT and MLX-LM are understood here. May import `deltas` and the
folders above it in CONTRIBUTING.md's table.
"""
