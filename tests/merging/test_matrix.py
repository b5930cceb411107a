"""Adapter kinds × architectures against PEFT. `benchmarks/matrix.py` runs the whole matrix."""

from __future__ import annotations

import pytest

from labkit import plan
from labkit.merging.rounding_on_device import DeviceMerger
from tests.architectures import ARCHITECTURES, make_architecture
from tests.kinds import KINDS, check, makes_sense, names_of, settings_of
from tests.oracle import train

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


BY_TORCH = [("llama", "dora"), ("llama", "embedding saved"), ("llama", "tokens"),
            ("qwen2", "lora_bias"), ("gpt2", "dora"), ("mixtral", "plain")]  # fmt: skip


@pytest.mark.parametrize(("architecture", "kind"), BY_TORCH)
def test_torch_merges_every_kind_to_the_same_bytes(root, architecture, kind, monkeypatch, tmp_path):
    """What is done on a GPU, here by torch on the processor."""
    base = root / architecture
    if not base.exists():
        make_architecture(base, architecture)
    adapter = train(tmp_path / "adapter", base, **settings_of(kind, names_of(base)))
    merge = plan(base, adapter, "0.5x3", rest=0.25, dtype="bfloat16")
    merge.write(tmp_path / "numpy", progress=False, device="cpu")
    called = []

    def by_torch():
        called.append(DeviceMerger("cpu"))
        return called[-1]

    monkeypatch.setattr("labkit.writing.engine.BlockMerger", by_torch)
    merge.write(tmp_path / "torch", progress=False, device="cpu")
    assert called
    for file in sorted((tmp_path / "numpy").glob("*.safetensors")):
        assert file.read_bytes() == (tmp_path / "torch" / file.name).read_bytes()
