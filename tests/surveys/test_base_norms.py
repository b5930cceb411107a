"""The norms of a base's tensors, measured and remembered."""

from __future__ import annotations

import json
import os

import pytest

import labkit as lk
from labkit.surveys.base_norms import base_norms
from tests.tiny import make_base

NAME = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "cache"))


def test_the_second_time_reads_no_tensor(tiny_base, monkeypatch):
    base = lk.Checkpoint(tiny_base)
    first = base_norms(base, [NAME], progress=False)
    monkeypatch.setattr("labkit.surveys.base_norms._norm", lambda _: pytest.fail("read again"))
    assert base_norms(lk.Checkpoint(tiny_base), [NAME], progress=False) == first


def test_another_file_is_measured_again(tmp_path):
    base = make_base(tmp_path / "base")
    first = base_norms(lk.Checkpoint(base), [NAME], progress=False)
    file = lk.Checkpoint(base).tensors[NAME].file
    content = file.read_bytes()
    file.write_bytes(content[:-200] + bytes(200))
    os.utime(file, ns=(1, 1))
    checkpoint = lk.Checkpoint(base)
    names = [tensor.name for tensor in checkpoint.files[0].tensors]
    again = base_norms(checkpoint, [NAME, *names], progress=False)
    for name, norm in again.items():
        assert norm == pytest.approx(float(checkpoint.read(name).double().norm()), rel=1e-12)
    assert first[NAME] > 0


def test_a_damaged_or_unwritable_cache_is_no_reason_to_fail(tiny_base, tmp_path, monkeypatch):
    base = lk.Checkpoint(tiny_base)
    first = base_norms(base, [NAME], progress=False)
    for path in (tmp_path / "cache").rglob("*.json"):
        path.write_text("{")
    assert base_norms(base, [NAME], progress=False) == first
    for path in (tmp_path / "cache").rglob("*.json"):
        content = json.loads(path.read_text())
        assert content["norms"]
        path.write_text(json.dumps({**content, "norms": [1]}))
    assert base_norms(base, [NAME], progress=False) == first
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "file" / "below"))
    assert base_norms(base, [NAME], progress=False) == first


def test_larger_than_the_buffers(tiny_base, monkeypatch):
    base = lk.Checkpoint(tiny_base)
    monkeypatch.setattr("labkit.surveys.base_norms.READ_BYTES", 1 << 9)
    monkeypatch.setattr("labkit.surveys.base_norms.BLOCK_ELEMENTS", 100)
    norm = base_norms(base, [NAME], progress=False)[NAME]
    assert norm == pytest.approx(float(base.read(NAME).double().norm()), rel=1e-12)
