"""The kinds of parts that an adapter can have, one file each: all that is to know of a kind.

kind               what it holds                        what it adds at weight w
LoraModule         A, B, scaling                        w·s·B·A
EmbeddingLora      the same, of an embedding            w·s·(B·A)ᵀ
DoraModule         a LoRA and a magnitude               w·(m/‖W+sBA‖·(W + sBA) − W)
ExpertLora         A and B of all experts of a stack    w·s·B_e·A_e to expert e
BiasOfB            the bias of lora_B                   w·s·b
WholeTensor        a parameter that was trained whole   w·(W_adapter − W)
TokenRows          rows of an embedding                 w·(W_adapter − W), in those rows

Each file says how its kind is read from the adapter's file, what it matches in the base and in
which orientation, what it adds, and how a bake scales it. `part.py` says what a kind has to say.
"""
