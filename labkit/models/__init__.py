"""What is opened: a base model (`Checkpoint`), an adapter, and the kinds of parts that they have.

Names of modules and the configs of PEFT and MLX-LM are understood here. May import `deltas` and
what is above it.
"""
