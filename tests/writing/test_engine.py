"""The engine: pieces in order, bounded memory, and an end to all threads whatever happens."""

from __future__ import annotations

import os
import threading
from contextlib import closing

import pytest
import torch

import labkit as lk
import labkit.writing.layout
import labkit.writing.write
from labkit.files.direct_io import SourceFile, hash_file
from labkit.merging import rounding_on_device
from labkit.writing.engine import Engine, FileHashes, MadePiece, pieces_at_once
from labkit.writing.layout import output_files
from tests.tiny import make_another_model


class Bar:
    """Counts what is done."""

    total = 0

    def update(self, count):
        self.total += count


@pytest.fixture
def plan(tiny_base, tiny_adapter, monkeypatch):
    monkeypatch.setattr(labkit.writing.layout, "PIECE_BYTES", 1000)
    monkeypatch.setitem(labkit.writing.layout.MERGE_BYTES, "cpu", 1000)
    return lk.plan(tiny_base, tiny_adapter, [0, 0.5, 1, -0.25])


def run(engine, store, finish=lambda _: None, files=None):
    """Stream files; all by default."""

    def carry_out(file):
        with closing(SourceFile(file.source.path)) as source:
            engine.stream(file, source, store, finish)

    engine.run(files or output_files(engine.plan, "cpu"), carry_out)


def labkits_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("labkit-")]


def test_pieces_are_finished_in_their_order_in_few_slots(plan):
    finished, slots, stored = [], set(), []

    def finish(made):
        finished.append(made.piece)
        slots.add(id(made.slot))

    engine = Engine(plan, "cpu", Bar())
    run(engine, stored.append, finish)
    files = output_files(plan, "cpu")
    assert len(finished) > 4 * pieces_at_once("cpu")
    for file in files:
        mine = set(file.pieces)
        assert [piece for piece in finished if piece in mine] == list(file.pieces)
    assert {made.piece for made in stored} == set(finished)
    assert len(slots) <= pieces_at_once("cpu")
    assert engine.bar.total == sum(file.size - len(file.header) for file in files)
    assert not engine.stopped.is_set()
    assert not labkits_threads()


def test_the_first_error_of_a_file_is_raised_and_ends_all_threads(plan):
    first = output_files(plan, "cpu")[0].pieces[2]

    def store(made):
        if made.piece == first:
            threading.Event().wait(0.05)  # those behind it have failed by then
            raise ValueError("the first")
        if made.piece.target > first.target:
            raise ValueError("a later one")

    with pytest.raises(ValueError, match="the first"):
        run(Engine(plan, "cpu", Bar()), store, files=output_files(plan, "cpu")[:1])
    assert not labkits_threads()


def test_no_piece_is_begun_after_the_bar_has_raised(plan):
    class EnoughError(Exception):
        pass

    class BarThatRaises:
        def update(self, count):
            raise EnoughError

    made = []

    def store(piece):
        made.append(piece)
        threading.Event().wait(0.002)

    engine = Engine(plan, "cpu", BarThatRaises())
    with pytest.raises(EnoughError):
        run(engine, store)
    assert engine.stopped.is_set()
    assert len(made) < sum(len(file.pieces) for file in output_files(plan, "cpu")) / 2


def test_a_bar_that_raises_ends_the_run(plan, tmp_path):
    class EnoughError(Exception):
        pass

    told = []

    def tell(done, total):
        told.append((done, total))
        if done > total / 4:
            raise EnoughError

    with pytest.raises(EnoughError):
        plan.write(tmp_path / "merged", device="cpu", progress=tell)
    assert told[-1][0] < told[-1][1]
    assert not os.listdir(tmp_path)
    assert not labkits_threads()


@pytest.mark.parametrize("link", [False, True])
def test_a_bar_is_told_of_every_byte(tiny_base, tiny_adapter, tmp_path, link):
    told = []
    plan = lk.plan(tiny_base, tiny_adapter, "0x3,1")
    plan.write(tmp_path / "merged", device="cpu", link=link, progress=lambda *now: told.append(now))
    total = sum(file.size for file in output_files(plan, "cpu"))
    assert told[-1] == (total, total)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("weights", ["0x4", "0,0,1,0"])
def test_the_hashes_of_a_file_and_of_what_it_becomes(
    kept, weights, tiny_base, tiny_adapter, tmp_path, monkeypatch
):
    """Whether a piece is in memory, or copied by the kernel and read again."""
    monkeypatch.setattr(labkit.writing.layout, "PIECE_BYTES", 1000)
    plan = lk.plan(tiny_base, tiny_adapter, weights)
    plan.write(tmp_path / "merged", device="cpu", progress=False)
    for file in output_files(plan, "cpu"):
        path = tmp_path / "merged" / file.name
        data, merged = file.source.path.read_bytes(), path.read_bytes()
        with closing(SourceFile(file.source.path)) as source:
            hashes = FileHashes(file, source, threading.Event())
            for piece in file.pieces:
                read = memoryview(data)[piece.source : piece.source + piece.source_bytes]
                written = memoryview(merged)[piece.target : piece.target + piece.nbytes]
                in_memory = kept or piece.tensor is not None
                hashes.add(MadePiece(piece, None, *((read, written) if in_memory else (None,) * 2)))
            assert hashes.digests() == (hash_file(file.source.path), hash_file(path))


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(params=["cpu:0", pytest.param("cuda", marks=NO_GPU)])
def device(request, monkeypatch):
    """A GPU; or torch on the processor, by a name that labkit takes for another device's."""
    monkeypatch.setitem(labkit.writing.layout.MERGE_BYTES, request.param, 4000)
    monkeypatch.setattr(rounding_on_device, "RUN_ELEMENTS", 500)
    monkeypatch.setattr(labkit.writing.write, "choose_device", lambda device: device)
    return request.param


@pytest.mark.parametrize("method", ["sum", "ties", "della"])
def test_a_gpu_writes_the_same_files(
    tiny_base, tiny_adapter, second_adapter, tmp_path, method, device
):
    model = make_another_model(tmp_path / "model", tiny_base)
    terms = [
        lk.Term(tiny_adapter, "0,0.5,1,-0.25"),
        lk.Term(second_adapter, "1,0.5,0,0"),
        lk.Term(model, "0.25x4"),
    ]
    plan = lk.plan(lk.Recipe(tiny_base, terms, 0.5, method=method))
    receipts = {}
    for where in ("cpu", device):
        receipts[where] = plan.write(tmp_path / where, device=where, progress=False)
    here, there = receipts["cpu"], receipts[device]
    assert there.device == device
    assert here.files_written == there.files_written  # their SHA-256
    assert here.files_written.keys() > {"model.safetensors.index.json"}
    for one, other in zip(here.tensors, there.tensors, strict=True):
        assert one.name == other.name
        assert other.asked == pytest.approx(one.asked, rel=1e-6)
        assert other.missing == pytest.approx(one.missing, rel=1e-4)


@pytest.mark.parametrize(
    "where",
    ["labkit.merging.rounding_on_device.DeviceMerger.merge",
     "labkit.merging.matching.Change.update"],
)  # fmt: skip
def test_a_gpu_whose_memory_is_full(plan, tmp_path, monkeypatch, device, where):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 32.00 GiB.")

    monkeypatch.setattr(where, full)
    with pytest.raises(lk.LabkitError) as caught:
        plan.write(tmp_path / "out", device=device, progress=False)
    assert str(caught.value) == (
        "the GPU's memory is full: free some (another program's, or that of live models by "
        "lk.free()), or merge with the device cpu, which makes the same bytes"
    )
    assert not (tmp_path / "out").exists()
    assert labkits_threads() == []
