"""Folders that are whole or not there: what is replaced, what is cleaned, what is said."""

import errno
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import labkit.files.atomic_folder as atomic_folder
from labkit.errors import LabkitError
from labkit.files.atomic_folder import (
    ASIDE,
    MARK,
    building,
    check_target,
    explain,
    is_or_lies_in,
    require_apart,
    written_files,
)


def refusal(action, *arguments, **options):
    with pytest.raises(LabkitError) as caught:
        action(*arguments, **options)
    return str(caught.value)


def make(out, content="new", overwrite=False):
    """Build a folder of two files as a merge does."""
    with building(out) as made:
        (made.folder / "model").write_text(content)
        receipt = {"labkit": "0", "tensors": [], "files_written": {"model": "…"}}
        (made.folder / "receipt.json").write_text(json.dumps(receipt))
        made.put_in_place(overwrite, "tensors")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def test_it_is_there_whole_and_alone(out):
    make(out)
    assert sorted(os.listdir(out)) == ["model", "receipt.json"]
    assert os.listdir(out.parent) == ["out"]
    assert written_files(out) == {"model", "receipt.json"}
    make(out, "newer", overwrite=True)
    assert (out / "model").read_text() == "newer"
    assert os.listdir(out.parent) == ["out"]


def test_what_labkit_did_not_write_is_not_replaced(out):
    make(out)
    (out / "gguf").mkdir()
    (out / "gguf" / "model.gguf").write_text("")
    (out / "tax.pdf").write_text("")
    (out / "link").symlink_to("tax.pdf")
    (out / "empty").mkdir()
    (out / ".DS_Store").write_text("")
    assert refusal(check_target, out, True, "tensors") == (
        f"{out} holds files that labkit did not write (empty/, gguf/model.gguf, link, tax.pdf), "
        "and is not replaced; move them away, or choose another name"
    )
    for number in range(4):
        (out / f"z{number}").write_text("")
    assert "tax.pdf, z0 and 3 more), and" in refusal(check_target, out, True, "tensors")


def test_what_came_while_it_was_built_is_not_replaced(out):
    make(out)

    def disturbed():
        with building(out) as made:
            (out / "mine").write_text("")
            made.put_in_place(True, "tensors")

    assert "did not write (mine), and" in refusal(disturbed)
    assert os.listdir(out.parent) == ["out"]
    assert (out / "mine").exists()


@pytest.mark.parametrize(
    "receipt", ["", "[]", '{"labkit": 3, "files_written": {}}', '{"total": "12.50"}']
)
def test_another_receipt_is_not_labkits(out, receipt):
    out.mkdir()
    (out / "receipt.json").write_text(receipt)
    assert written_files(out) == set()
    assert "was not made by labkit (it holds no receipt.json of labkit's), and is not" in refusal(
        check_target, out, True, "tensors"
    )


def test_a_bake_and_a_merge_do_not_replace_each_other(out):
    make(out)
    assert refusal(check_target, out, True, "modules") == (
        f"{out} holds something else that labkit made (a merged model is no baked adapter), and is "
        "not replaced; choose another name, or remove it yourself"
    )


def test_a_link_is_not_replaced(out):
    make(out.parent / "other")
    out.symlink_to("other")
    assert "was not made by labkit" in refusal(check_target, out, True, "tensors")


def test_only_labkits_own_leftovers_are_taken_away(out):
    users = out.parent / ".out.labkit-notes"
    unmarked = out.parent / ".out.labkit-0123abcd"
    others = out.parent / ".out.labkit-0123abcd9"
    linked = out.parent / ".out.labkit-01234567"
    for folder in (users, unmarked, others):
        folder.mkdir()
        (folder / "mine").write_text("")
    (others / MARK).touch()
    linked.symlink_to(others)
    marked = out.parent / ".out.labkit-89abcdef"
    empty = out.parent / ".out.labkit-00000000"
    for folder in (marked, empty):
        folder.mkdir()
    (marked / MARK).touch()
    (marked / "inside").mkdir()
    (marked / "inside" / "half").touch()
    make(out)
    left = {users.name, unmarked.name, others.name, linked.name, "out"}
    assert set(os.listdir(out.parent)) == left


def test_what_was_moved_aside_comes_back(out):
    make(out)
    out.rename(out.parent / f".out.{ASIDE}0123abcd")

    def another():
        make(out, "newer")

    assert "was made by someone else meanwhile" in refusal(another)
    assert (out / "model").read_text() == "new"
    assert os.listdir(out.parent) == ["out"]


def refusing(call, number, wanted):
    """A system call that refuses for some paths or descriptors."""

    def refuse(target, *arguments, **options):
        path = Path(os.readlink(f"/proc/self/fd/{target}")) if isinstance(target, int) else target
        if wanted(Path(path)):
            raise OSError(number, os.strerror(number), str(path))
        return call(target, *arguments, **options)

    return refuse


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_flush_folders_is_no_fault(out, monkeypatch, number):
    monkeypatch.setattr(os, "fsync", refusing(os.fsync, number, Path.is_dir))
    make(out)
    assert (out / "model").exists()


@pytest.mark.parametrize("call", ["open", "fsync"])
def test_after_the_renaming_an_error_says_that_it_is_there(out, monkeypatch, call):
    place = atomic_folder._take_place

    def take_place(*arguments):
        place(*arguments)
        refuse = refusing(getattr(os, call), errno.EIO, lambda path: path == out.parent)
        monkeypatch.setattr(os, call, refuse)

    monkeypatch.setattr(atomic_folder, "_take_place", take_place)
    text = refusal(make, out)
    assert text.startswith(f"{out} is in place and whole, but the system did not confirm that it ")
    assert "(Input/output error); look after the disk" in text
    assert (out / "model").exists()


def test_a_folder_that_cannot_be_closed_is_no_fault(out, monkeypatch):
    close = os.close

    def refuse(descriptor):
        folder = os.path.isdir(f"/proc/self/fd/{descriptor}")
        close(descriptor)
        if folder:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "close", refuse)
    make(out)
    assert (out / "model").exists()
    assert os.listdir(out.parent) == ["out"]


def test_what_cannot_be_taken_away_is_said(out, monkeypatch):
    refuse = refusing(os.unlink, errno.EPERM, lambda path: path.name == "model")
    monkeypatch.setattr(os, "unlink", refuse)

    def stopped(error):
        with building(out) as made:
            (made.folder / "model").write_text("")
            raise error

    remains = r"/\.out\.labkit-[0-9a-f]{8} could not be taken away \(.* permitted\); remove it your"
    with pytest.raises(LabkitError, match=f"^something; .*{remains}"):
        stopped(LabkitError("something"))
    with pytest.raises(KeyboardInterrupt) as caught:
        stopped(KeyboardInterrupt())
    assert "could not be taken away" in caught.value.__notes__[0]
    with pytest.raises(OSError, match="No space") as full:
        stopped(OSError(errno.ENOSPC, "No space left"))
    said = explain(full.value, out)
    assert said.startswith(f"the disk became full while {out} was written; {out.parent}/.out.labk")
    assert "nothing is left" not in said
    monkeypatch.undo()
    make(out)  # the next one takes it all away
    assert os.listdir(out.parent) == ["out"]


def test_an_old_model_that_cannot_be_taken_away_is_said(out, monkeypatch):
    make(out)
    refuse = refusing(os.unlink, errno.EPERM, lambda path: path.name == "model")
    monkeypatch.setattr(os, "unlink", refuse)
    text = refusal(make, out, "newer", overwrite=True)
    assert text.startswith(f"{out} is in place and whole, but {out.parent}/.out.labkit-")
    assert (out / "model").read_text() == "newer"


def test_an_old_model_that_stays_aside_is_said(out, monkeypatch):
    make(out)
    monkeypatch.setattr(atomic_folder, "_exchange", lambda *_: False)
    refuse = refusing(os.rename, errno.EPERM, lambda path: ASIDE in path.name)
    monkeypatch.setattr(os, "rename", refuse)
    text = refusal(make, out, "newer", overwrite=True)
    assert text.startswith(f"{out} is in place and whole, but {out.parent}/.out.{ASIDE}")
    assert "which it replaced, could not be taken away" in text


def test_what_explains_itself():
    out = Path("/a/out")
    for number, said in (
        (errno.ENOSPC, "the disk became full while /a/out was written; nothing is left of it: ma"),
        (errno.EFBIG, "system allows here (ulimit -f, or the file system); nothing is left of it:"),
        (errno.EACCES, "cannot write /a/out: Permission denied; nothing is left of it"),
    ):
        assert said in explain(OSError(number, os.strerror(number)), out)
    other = OSError(errno.EACCES, "Permission denied", "/b/file")
    assert explain(other, out) == (
        "cannot read /b/file: Permission denied; nothing is left of /a/out"
    )


def test_a_folder_is_the_same_by_whatever_path(tmp_path, monkeypatch):
    base = tmp_path / "Ad"
    (base / "deep").mkdir(parents=True)
    assert is_or_lies_in(base, base)
    assert is_or_lies_in(base / "deep" / "no" / "such", base)
    assert is_or_lies_in(base, tmp_path)
    assert not is_or_lies_in(tmp_path, base)
    assert not is_or_lies_in(tmp_path / "other", base)
    # As on a disk that takes `AD` for `Ad`.
    monkeypatch.setattr(atomic_folder, "_identity", lambda path: str(path).lower())
    assert is_or_lies_in(tmp_path / "AD" / "out", base)
    assert "would replace the adapter" in refusal(require_apart, tmp_path / "AD", base)


def test_a_bind_mount_leads_to_the_same_folder(tmp_path):
    base, mounted = tmp_path / "base", tmp_path / "mounted"
    for folder in (base, mounted):
        folder.mkdir()
    command = shutil.which("mount") or "mount"
    try:
        subprocess.run([command, "--bind", base, mounted], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no mounts here")
    try:
        assert is_or_lies_in(mounted / "out", base)
        assert is_or_lies_in(base, mounted)
    finally:
        subprocess.run(["umount", mounted], check=True)
