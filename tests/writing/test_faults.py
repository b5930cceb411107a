"""Disturbed merges: a small sample of `benchmarks/faults.py`, and what it cannot show."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

import labkit.files.atomic_folder
import labkit.files.direct_io
from benchmarks.faults import Bench, changed, digest, disturb, full, race
from labkit import Gradient, LabkitError, plan
from labkit.files.atomic_folder import ASIDE, MARK

SMALL = {"hidden_size": 64, "intermediate_size": 96, "layers": 2, "vocab_size": 64}
ONES = Gradient([1.0, 1.0])


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("faults"), **SMALL)


@pytest.fixture
def out(bench):
    shutil.rmtree(bench.out, ignore_errors=True)
    return bench.out


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_signals_at_random_moments(bench, number):
    assert sum(disturb(bench, number, 3).values()) == 3


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_limit_of_file_size_two_at_once_and_changing_inputs(bench):
    assert sum(full(bench, 2).values()) == 2
    assert sum(race(bench, 2).values()) == 2
    assert sum(changed(bench, 3).values()) == 3


def test_what_a_killed_merge_left_is_cleaned_and_the_old_model_restored(bench, out):
    left = out.parent / f".{out.name}.labkit-0123abcd"
    left.mkdir()
    (left / MARK).touch()
    (left / "model.safetensors").write_bytes(b"half")
    aside = out.parent / f".{out.name}.{ASIDE}0123abcd"
    plan(bench.base, bench.adapter, ONES).write(aside, progress=False)
    # Killed between moving the old model aside and putting the new one in its place: the next merge
    # finds the old one again, and refuses to replace it unasked.
    with pytest.raises(LabkitError, match="was made by someone else"):
        plan(bench.base, bench.adapter, ONES).write(out, progress=False)
    assert digest(out) == bench.whole
    assert not bench.leftovers()


@pytest.mark.parametrize("exchange", [True, False])
def test_overwriting_with_and_without_an_exchange_of_names(bench, out, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(labkit.files.atomic_folder, "_exchange", lambda _folder, _out: False)
    plan(bench.base, bench.adapter, Gradient([0.5, 0.5])).write(out, progress=False)
    plan(bench.base, bench.adapter, ONES).write(out, progress=False, overwrite=True)
    assert digest(out) == bench.whole
    assert not bench.leftovers()


def test_what_is_half_built_never_passes_for_an_old_model(bench):
    out = bench.out.parent / f"named{ASIDE}like-it"
    left = out.parent / f".{out.name}.labkit-0123abcd"
    left.mkdir()
    (left / MARK).touch()
    (left / "model.safetensors").write_bytes(b"half")
    try:
        plan(bench.base, bench.adapter, ONES).write(out, progress=False)
        assert digest(out) == bench.whole
        assert not left.exists()
    finally:
        shutil.rmtree(out, ignore_errors=True)


def test_a_link_is_shared_and_rewriting_the_output_never_reaches_the_base(bench, out):
    first_only = plan(bench.base, bench.adapter, Gradient([1.0, 0.0]))
    receipt = first_only.write(out, progress=False, link=True)
    for name in receipt.linked:
        assert os.path.samefile(out / name, bench.base / name)
    plan(bench.base, bench.adapter, ONES).write(out, progress=False, overwrite=True)
    assert digest(bench.base) == bench.base_digest
    assert digest(out) == bench.whole


def test_a_full_disk_is_said_and_nothing_left(bench, out, monkeypatch):
    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(labkit.files.direct_io, "write_fully", no_space)
    with pytest.raises(LabkitError, match=r"the disk became full while .*; nothing is left of it"):
        plan(bench.base, bench.adapter, ONES).write(out, progress=False)
    assert not out.exists()
    assert not bench.leftovers()


def test_a_folder_without_permission_is_said(bench, out, monkeypatch):
    def denied(*_):
        raise PermissionError(13, "Permission denied", str(out.parent / "x"))

    monkeypatch.setattr("pathlib.Path.mkdir", denied)
    with pytest.raises(LabkitError, match=r"cannot write .*: Permission denied .*/x\)"):
        plan(bench.base, bench.adapter, ONES).write(out, progress=False)


def test_targets_in_the_base_are_refused(bench):
    for target in (bench.base, bench.base / "inside", bench.base.parent):
        with pytest.raises(LabkitError, match="lie in each other; the base is never written to"):
            plan(bench.base, bench.adapter, ONES).write(target, progress=False, overwrite=True)
    with pytest.raises(LabkitError, match="would replace the adapter"):
        plan(bench.base, bench.adapter, ONES).write(bench.adapter, overwrite=True)
    assert digest(bench.base) == bench.base_digest


def test_another_file_system(bench):
    if not os.path.isdir("/dev/shm") or os.stat("/dev/shm").st_dev == os.stat(bench.base).st_dev:
        pytest.skip("no other file system here")
    target = Path(f"/dev/shm/labkit-test-{os.getpid()}")
    try:
        receipt = plan(bench.base, bench.adapter, Gradient([1.0, 0.0])).write(
            target, progress=False, link=True
        )
        assert receipt.linked == ()
        assert plan(bench.base, bench.adapter, ONES).write(target, progress=False, overwrite=True)
        assert digest(target) == bench.whole
    finally:
        shutil.rmtree(target, ignore_errors=True)
