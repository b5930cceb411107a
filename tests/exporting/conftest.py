"""A small model that llama.cpp's converter knows, and a format whose tools are plain Python."""

from __future__ import annotations

import shutil
import sys

import numpy as np
import pytest
import torch

import labkit as lk
from labkit.demonstration.base import base_folder
from labkit.exporting import environments, formats, mlx_folders, transformers_formats
from labkit.exporting.job import Answers, Converted, Format
from labkit.probing.texts import Texts
from tests.exporting.fake_tools import install
from tests.tiny import make_base

PROSE = lk.demo_texts()["modern prose"]
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    """A Llama of 2 layers with the demo's tokenizer, in widths that K-quants take whole."""
    folder = make_base(
        tmp_path_factory.mktemp("small") / "small-llama",
        layers=2,
        shard="100MB",
        hidden_size=256,
        intermediate_size=512,
        vocab_size=49152,
        initializer_range=0.08,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    for name in TOKENIZER:
        shutil.copy(base_folder() / name, folder)
    return folder


@pytest.fixture(scope="session")
def whole(small_model, tmp_path_factory):
    """The small model's bfloat16 file, checked."""
    texts = Texts("prose", PROSE.passages[:5])
    out = tmp_path_factory.mktemp("gguf") / "whole"
    return lk.export(small_model, out, "gguf-bf16", texts=texts, progress=False)


@pytest.fixture
def plain_format(monkeypatch):
    """A format that copies the first file of weights, and whose runtime is transformers."""
    seen = {}

    def convert(job):
        seen["staged"] = {path.name for path in job.staged.iterdir()}
        seen["calibration"] = job.calibration
        file = job.out / f"{job.name}.copy"
        shutil.copyfile(next(job.staged.glob("*.safetensors")), file)
        return Converted((file.name,), file.name, f"run {file.name}", {"tool": "1.0"}, 1 << 20, 2.5)

    def answer(job, converted, questions):
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(job.staged, dtype=torch.float32)
        files = []
        for number, tokens in enumerate(questions.sequences):
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([list(tokens)])).logits[0]
            files.append(job.work / f"{number}.npy")
            np.save(files[-1], logits.log_softmax(-1).numpy())
        return Answers(files, None, None, {"transformers": "0"})

    made = Format(
        name="plain",
        what="a copy",
        needs="nothing",
        missing=lambda: "",
        calibration="may",
        bits=16,
        convert=convert,
        answer=answer,
    )
    monkeypatch.setitem(formats.FORMATS, "plain", made)
    made.__dict__["seen"] = seen
    return made


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """Installs some of `fake_tools`; labkit's own Python stands for that of uv's environment."""

    def install_some(*packages):
        install(tmp_path / "tools", *packages)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "tools"))
        monkeypatch.setattr(environments, "find_spec", lambda name: name)
        monkeypatch.setattr(environments.shutil, "which", lambda name: name)
        for module in (transformers_formats, mlx_folders):
            monkeypatch.setattr(module, "in_environment_of", lambda *packages: (sys.executable,))

    return install_some
