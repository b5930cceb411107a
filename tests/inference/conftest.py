"""Tiny bases for live models."""

from __future__ import annotations

import pytest
import torch

from tests.architectures import make_architecture
from tests.tiny import make_letters


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Tiny bases in 16 bits, each made once; vocabularies that a tokenizer of letters fits."""
    root = tmp_path_factory.mktemp("bases")

    def base(architecture):
        folder = root / architecture
        if not folder.exists():
            # Every expert is asked, so that nothing jumps when a weight changes a little.
            more = {"num_experts_per_tok": 4} if architecture == "qwen3_moe" else {}
            make_architecture(folder, architecture, torch.bfloat16, vocab_size=97, **more)
            make_letters(folder)
        return folder

    return base
