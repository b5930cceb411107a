"""Quantised models in memory: large bases on small machines, by bitsandbytes.

Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", 2023, arXiv 2305.14314 (NF4);
"LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale", 2022, arXiv 2208.07339.
"""

from __future__ import annotations

from typing import Any

from labkit.errors import LabkitError, shown
from labkit.quiet import quiet

KINDS = {"nf4": "4 bits", "int8": "8 bits"}
"""How linear modules can be quantised, and bits for each of their weights."""
PASSAGES = (
    "The ferry leaves the harbour at nine in the morning and reaches the island before noon. "
    "Whoever wants to climb the hill above the village should take water along, for there is no "
    "spring on the way, and the last boat goes back at six.",
    "To bake bread you need flour, water, salt and time. Mix them in a bowl, knead the dough until "
    "it is smooth, cover it with a cloth and let it rise for two hours. Then shape it and bake it "
    "in a hot oven until the crust is brown.",
    "Question: A train has 12 carriages, and each carriage has 48 seats. How many seats are there "
    "in all? Answer: 12 times 48 is 576, so the train has 576 seats.",
)
"""Some plain English on which it is measured what quantising changes."""


def require_kind(quantize: str | None, device: str) -> None:
    """Check how a model is to be quantised.

    Raises:
        LabkitError: an unknown way, or a device that bitsandbytes does not know.
    """
    if quantize is None:
        return
    if quantize not in KINDS:
        raise LabkitError(f"quantize is {shown(repr(quantize))}; expected {' or '.join(KINDS)}")
    if device not in ("cpu", "cuda"):
        raise LabkitError(f"bitsandbytes quantises on cpu and cuda, not on {device}; choose one")


def quantised_by(quantize: str, dtype: Any) -> Any:
    """Transformers' config for a quantised model.

    Args:
        quantize: "nf4" or "int8".
        dtype: torch's dtype, in which is calculated.

    Raises:
        LabkitError: bitsandbytes is not installed.
    """
    try:
        with quiet("bitsandbytes"):
            import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise LabkitError(
            "bitsandbytes is not installed, which quantises models in memory; install it with "
            "pip install 'labkit[quantize]'"
        ) from error
    from transformers import BitsAndBytesConfig

    if quantize == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )


def require_sizes(model: Any, device: str) -> None:
    """Check that bitsandbytes can calculate with what it quantised: it packs 4 bits in groups.

    Raises:
        LabkitError: a module of another size, on a CPU.
    """
    for name, module in model.named_modules():
        if device != "cpu" or type(module).__name__ != "Linear4bit":
            continue
        if module.in_features % 64 or module.out_features % 32:
            raise LabkitError(
                f"bitsandbytes calculates with nf4 on a CPU where modules have a multiple of 64 "
                f"inputs and of 32 outputs, and {shown(name)!r} has {module.in_features} and "
                f"{module.out_features}; choose int8"
            )
