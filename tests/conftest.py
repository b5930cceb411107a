"""Tiny models and adapters, made from configs in a second; shapes in type hints are enforced."""

from __future__ import annotations

import os

# Before transformers and huggingface_hub are imported: tests never reach for the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A kernel that answers in the background would otherwise spin on every core while it waits, and
# tests of 10 seconds would take minutes on a machine of two cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Where tests run side by side, threads of their own would only take each other's cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

with install_import_hook(["labkit.deltas", "labkit.merging.rounding"], "beartype.beartype"):
    import labkit.deltas.low_rank
    import labkit.merging.rounding  # noqa: F401

import gc
import shutil

import hypothesis
import pytest
import torch

from tests.tiny import make_adapter, make_base, make_letters, merged_by_peft

# On a busy machine the first example of a test can take long; how long says nothing.
hypothesis.settings.register_profile("labkit", deadline=None)
hypothesis.settings.load_profile("labkit")


def pytest_collection_modifyitems(items):
    """The notebooks first: where files of tests run side by side, theirs takes longest."""
    items.sort(key=lambda item: "notebooks" not in item.path.parts)


def pytest_collection_finish():
    """What is imported by now stays, so that collecting memory need not look at it each time.

    Each test that frees a model collects, which took 0.8 s.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """A Llama of 4 layers in bfloat16, in two shards, tied head."""
    return make_base(tmp_path_factory.mktemp("base") / "tiny-llama")


@pytest.fixture(scope="session")
def tiny_adapter(tmp_path_factory, tiny_base):
    """A LoRA of rank 4 on every linear module of `tiny_base`."""
    return make_adapter(tmp_path_factory.mktemp("adapter") / "tiny-lora", tiny_base)


@pytest.fixture(scope="session")
def second_adapter(tmp_path_factory, tiny_base):
    """Another LoRA, of rank 2, on two modules of each layer of `tiny_base`."""
    folder = tmp_path_factory.mktemp("adapter") / "second"
    return make_adapter(folder, tiny_base, r=2, target_modules=["q_proj", "down_proj"])


@pytest.fixture(scope="session")
def words(tmp_path_factory, tiny_base):
    """A copy of `tiny_base` that has a tokenizer, of one token for each letter."""
    folder = tmp_path_factory.mktemp("words") / tiny_base.name
    shutil.copytree(tiny_base, folder)
    return make_letters(folder)


@pytest.fixture(scope="session")
def loud_base(tmp_path_factory):
    """A base with large weights, whose probabilities are far from uniform."""
    folder = make_base(
        tmp_path_factory.mktemp("loud") / "base", initializer_range=0.3, vocab_size=97
    )
    return make_letters(folder)


@pytest.fixture(scope="session")
def loud_adapter(tmp_path_factory, loud_base):
    """A LoRA whose deltas are about as large as the weights."""
    return make_adapter(tmp_path_factory.mktemp("loud") / "lora", loud_base, scale=0.3)


@pytest.fixture
def loud(loud_base, loud_adapter):
    """The live model of the two."""
    from labkit.inference.live_model import free, live

    yield live(loud_base, loud_adapter, device="cpu")
    free()


@pytest.fixture(scope="session")
def plain_models(loud_base, loud_adapter):
    """Base, a merge at the weights 0, 0.5, 1, -0.5, and the full LoRA: as PEFT merges them."""
    from transformers import AutoModelForCausalLM

    from labkit.gradients.gradient import Gradient

    models = {}
    gradients = {"base": "0x4", "merged": "0,0.5,1,-0.5", "full": "1x4"}
    for name, weights in gradients.items():
        model = AutoModelForCausalLM.from_pretrained(loud_base, dtype=torch.float32)
        model.load_state_dict(merged_by_peft(loud_base, loud_adapter, Gradient.parse(weights)))
        models[name] = model.eval()
    return models


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
