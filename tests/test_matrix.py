"""Adapter kinds × architectures against PEFT. `benchmarks/matrix.py` runs the whole matrix."""

from __future__ import annotations

import pytest

from tests.architectures import ARCHITECTURES
from tests.kinds import KINDS, check, makes_sense

ACROSS = {"llama": KINDS, "qwen2": ("lora_bias", "bias all", "embedding", "tokens"),
          "gpt2": ("dora", "embedding", "bias all", "dora embedding"),
          "mixtral": ("modules_to_save",)}  # fmt: skip
CASES = [(architecture, "plain") for architecture in ARCHITECTURES]
CASES += [
    (architecture, kind)
    for architecture, kinds in ACROSS.items()
    for kind in kinds
    if kind != "plain" and makes_sense(architecture, kind)
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("matrix")


@pytest.mark.parametrize(("architecture", "kind"), CASES)
def test_merges_as_peft_does(root, architecture, kind):
    check(root, architecture, kind)
