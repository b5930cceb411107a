"""Small files: plain ones of a size that is said, inside their folder, and unchanged."""

from __future__ import annotations

import os
import re
import socket

import pytest

from labkit import LabkitError
from labkit.files.small_files import (
    LARGEST_JSON,
    LARGEST_TEXT,
    MOST_VALUES,
    read_json,
    read_text,
    require_inside,
    require_plain,
    require_same_json,
)


def refusal(function, *arguments):
    with pytest.raises(LabkitError) as caught:
        function(*arguments)
    assert str(caught.value).isprintable()
    return str(caught.value)


def readers(path):
    return (lambda: read_json(path)), (lambda: read_text(path, "recipe"))


def test_what_is_no_plain_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(tmp_path / "socket"))
        for name, kind in (
            ("fifo", "a FIFO"),
            ("link", "a FIFO"),
            ("zero", "a device"),
            ("socket", "a socket"),
            (".", "a folder"),
        ):
            for reader in readers(tmp_path / name):
                assert refusal(reader) == f"{tmp_path / name} is {kind}; expected a plain file"
    for name, reason in (("loop", "Too many"), ("none", "No such file"), ("x" * 300, "name too")):
        by_json, by_text = readers(tmp_path / name)
        assert re.match(f"cannot read /.*: .*{reason}", refusal(by_json))
        assert re.match(f"cannot read the recipe /.*: .*{reason}", refusal(by_text))


def test_sizes_are_limited_and_said(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b" " * (LARGEST_TEXT - 4) + b"\xc3\xa4\r\n")
    assert read_text(path, "recipe").strip(" ") == "ä\n"
    with path.open("r+b") as file:
        file.truncate(LARGEST_TEXT + 1)
    assert refusal(read_text, path, "recipe") == f"{path} is too large for a recipe (over 1 MB)"
    with path.open("r+b") as file:
        file.truncate(LARGEST_JSON + 1)
    assert refusal(read_json, path) == (
        f"{path} is too large for a config or an index (over 50 MB)"
    )
    path.write_bytes(b'{"a": [' + b"1," * (MOST_VALUES - 2) + b"1]}")
    assert len(read_json(path)["a"]) == MOST_VALUES - 1
    path.write_bytes(b'{"a": [' + b"[]," * MOST_VALUES + b"1]}")
    assert refusal(read_json, path) == (
        f"{path} holds more than a config or an index (over 1,000,000 values)"
    )


def test_what_is_no_text_or_no_object(tmp_path):
    path = tmp_path / "file"
    for content, said in (
        (b"\xff", "is not JSON"),
        (b"{", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b"[1]", "holds list, expected a JSON object"),
    ):
        path.write_bytes(content)
        assert said in refusal(read_json, path)
    path.write_bytes(b"\xff")
    assert refusal(read_text, path, "recipe") == f"{path} is no text in UTF-8; a recipe is"


def test_plain_files_may_be_links(tmp_path):
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to("file")
    assert require_plain(tmp_path / "link").st_size == 4
    assert read_text(tmp_path / "link", "recipe") == "text"


def test_links_stay_inside(tmp_path):
    folder = tmp_path / "model"
    (folder / "deep").mkdir(parents=True)
    (tmp_path / "key").write_text("secret")
    (folder / "deep" / "file").write_text("text")
    for name, target in (("good", "deep/file"), ("bad", "../key"), ("loop", "loop")):
        (folder / name).symlink_to(target)
    for name in ("good", "loop", "deep/file"):
        require_inside(folder / name)
    assert refusal(require_inside, folder / "bad") == (
        f"{folder / 'bad'} is a link to {tmp_path / 'key'}, outside its folder; put the file "
        "itself there"
    )
    # As in the hub's cache.
    snapshot = tmp_path / "models--a--b" / "snapshots" / "c"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs").mkdir()
    (tmp_path / "models--a--b" / "blobs" / "0").write_text("text")
    (snapshot / "file").symlink_to("../../blobs/0")
    require_inside(snapshot / "file")
    (snapshot / "key").symlink_to(tmp_path / "key")
    assert "outside its folder" in refusal(require_inside, snapshot / "key")


def test_links_of_a_cache_whose_blobs_lie_elsewhere(tmp_path):
    disk, digest = tmp_path / "disk", "0123456789" * 4
    disk.mkdir()
    for name in (digest, "id_ed25519"):
        (disk / name).write_text("text")
    snapshot = tmp_path / "models--a--b" / "snapshots" / "c"
    (snapshot / "deep").mkdir(parents=True)
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.symlink_to(disk)
    (snapshot / "config.json").symlink_to(f"../../blobs/{digest}")
    (snapshot / "deep" / "config.json").symlink_to(f"../../../blobs/{digest}")
    (snapshot / "LICENSE").symlink_to("../../blobs/id_ed25519")
    require_inside(snapshot / "config.json")
    require_inside(snapshot / "deep" / "config.json")
    assert f"is a link to {disk / 'id_ed25519'}, outside" in refusal(
        require_inside, snapshot / "LICENSE"
    )
    # The blobs may be links one by one.
    blobs.unlink()
    blobs.mkdir()
    (blobs / digest).symlink_to(disk / digest)
    require_inside(snapshot / "config.json")
    (blobs / digest).unlink()
    (blobs / digest).symlink_to(disk / "id_ed25519")
    assert "outside its folder" in refusal(require_inside, snapshot / "config.json")


def test_a_folder_of_links_to_a_model(tmp_path):
    model, farm = tmp_path / "model", tmp_path / "farm"
    model.mkdir()
    farm.mkdir()
    for name in ("model.safetensors", "config.json", "LICENSE"):
        (model / name).write_text("text")
        (farm / name).symlink_to(model / name)
        require_inside(farm / name)
    again = tmp_path / "again"
    again.mkdir()
    for name in ("config.json", "LICENSE"):
        (again / name).symlink_to(farm / name)  # links to links
        require_inside(again / name)
    (again / "model-1.safetensors").symlink_to(model / "model.safetensors")
    require_inside(again / "model-1.safetensors")
    # To a model's file under another name, to a file beside no weights, and to what is no weights.
    (tmp_path / "key.pem").write_text("secret")
    (tmp_path / "USE_POLICY.md").write_text("secret")
    for name, target in (
        ("NOTICE", model / "LICENSE"),
        ("USE_POLICY.md", tmp_path / "USE_POLICY.md"),
        ("model.bin", tmp_path / "key.pem"),
        ("pytorch_model.bin", model / "model.safetensors"),
    ):
        (farm / name).symlink_to(target)
        assert f"{farm / name} is a link to {target}, outside" in refusal(
            require_inside, farm / name
        )
    (again / "USE_POLICY.md").symlink_to(farm / "USE_POLICY.md")
    assert f"link to {tmp_path / 'USE_POLICY.md'}" in refusal(
        require_inside, again / "USE_POLICY.md"
    )


def test_a_file_that_changes_is_noticed(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"a": 1}')
    require_same_json(path, {"a": 1})
    for change in ('{"a": 2}', "["):
        path.write_text(change)
        assert "was changed or removed while labkit worked" in refusal(
            require_same_json, path, {"a": 1}
        )
    path.unlink()
    assert "was changed or removed" in refusal(require_same_json, path, {"a": 1})
