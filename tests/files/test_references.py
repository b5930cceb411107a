"""References: what is open stays open, and what each name means."""

from __future__ import annotations

import hashlib
from fnmatch import fnmatch

import huggingface_hub
import pytest

from labkit import Adapter, Checkpoint, LabkitError
from labkit.files import references
from labkit.files.references import locate, require_as_on_hub


def test_what_is_open_is_not_opened_again(tiny_base, tiny_adapter):
    for kind, folder in ((Checkpoint, tiny_base), (Adapter, tiny_adapter)):
        opened = kind.open(str(folder))
        assert type(opened) is kind
        assert kind.open(opened) is opened
        assert kind.open(folder).folder == opened.folder


def test_names_that_cannot_be(tmp_path):
    def said(reference):
        with pytest.raises(LabkitError) as caught:
            locate(reference, "base model", lambda _, names, fetch: names)
        assert str(caught.value).isprintable()
        return str(caught.value)

    (tmp_path / "file").write_text("")
    assert "is a file; name the folder that holds it" in said(tmp_path / "file")
    assert "does not exist: expected a folder, or a hub id as owner/name" in said("gpt2")
    for leaving in ("owner/name:../../..", "owner/name:a/../..", "owner/name@../../x", "a/b@..:c"):
        assert f"'{leaving}' leads out of its repository with ..; name a folder" in said(leaving)


def test_addresses_and_names_of_elsewhere(tmp_path, monkeypatch):
    asked = []

    def no_hub(repository, revision):
        asked.append((repository, revision))
        raise OSError("no network")

    monkeypatch.setattr(references, "_list_files", no_hub)

    def said(reference):
        with pytest.raises(LabkitError) as caught:
            locate(reference, "base model", lambda _, names, fetch: names)
        return str(caught.value)

    page = "https://huggingface.co/owner/name"
    for address, hub_id in (
        (page, "owner/name"),
        (page + "/", "owner/name"),
        ("http://www.hf.co/owner/name/tree/main", "owner/name"),
        (page + "/tree/v1.0", "owner/name@v1.0"),
        (page + "/tree/main/epoch%202/", "owner/name:epoch 2"),
        (page + "/tree/v1/a/b", "owner/name@v1:a/b"),
    ):
        assert f"the base model {hub_id!r} is no folder here, and the hub did not" in said(address)
    assert asked == [("owner/name", None)] * 3 + [("owner/name", revision)
                                                 for revision in ("v1.0", None, "v1")]  # fmt: skip
    assert "leads out of its repository with .." in said(page + "/tree/main/..%2f..")
    for address in (page + "/blob/main/config.json", "https://example.com/owner/name"):
        assert "; of an address of the hub, write what stands behind huggingf" in said(address)
    assert said("gpt2").endswith("; gpt2 is openai-community/gpt2 there")
    assert said(r"C:\models\llama 3").endswith(
        "; this is a path of Windows, and here is another system, where it may be "
        "/mnt/c/models/llama 3"
    )
    assert said(r"\\server\models").endswith("is a path of Windows, and here is another system")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub of one repository, whose downloads are counted."""
    files = ("config.json", "odd [1]*.json", "epoch 2/config.json", "epoch 2/deep/x", "other/y")
    snapshot = tmp_path / "snapshots" / ("c" * 40)
    downloaded = []

    def download(repository, revision, allow_patterns):
        found = [name for name in files if any(fnmatch(name, mark) for mark in allow_patterns)]
        downloaded.append(found)
        for name in found:
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            (snapshot / name).write_text("{}")
        return str(snapshot)

    monkeypatch.setattr(references, "_list_files", lambda *_: list(files))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return downloaded


def test_only_what_was_chosen_is_downloaded(hub):
    def choose(reference, names, fetch):
        seen.extend(names)
        assert (fetch(["config.json"]) / "config.json").read_text() == "{}"
        return ["config.json", "odd [1]*.json", "no such file"]

    seen = []
    whole = locate("owner/name", "base model", choose)
    assert (whole.folder.name, whole.revision, whole.repository) == (
        "c" * 40, "c" * 40, "owner/name")  # fmt: skip
    assert "other/y" in seen
    assert hub == [["config.json"], ["config.json", "odd [1]*.json"]]
    for given in ("owner/name@v1:epoch 2", "owner/name@v1:./epoch 2/"):
        hub.clear()
        seen.clear()
        below = locate(given, "adapter", choose)
        assert seen == ["config.json", "deep/x"]
        assert hub == [["epoch 2/config.json"]] * 2
        assert (below.folder.name, below.revision) == ("epoch 2", "c" * 40)
    with pytest.raises(LabkitError, match="the hub's owner/name has no folder 'epoch 3'"):
        locate("owner/name:epoch 3", "adapter", choose)


def test_a_damaged_download_is_noticed(tmp_path):
    good, other = hashlib.sha256(b"good").hexdigest(), hashlib.sha256(b"bad").hexdigest()
    (tmp_path / good).write_text("bad")
    (tmp_path / "link").symlink_to(good)
    require_as_on_hub(tmp_path / "link", good)
    require_as_on_hub(tmp_path / good, other)  # not in a cache
    with pytest.raises(LabkitError) as caught:
        require_as_on_hub(tmp_path / "link", other)
    assert str(caught.value) == (
        f"{tmp_path / 'link'} is not the file that the hub has (SHA-256 {good[:12]}…, here "
        f"{other[:12]}…): its download is damaged; remove {tmp_path / good}, and start again"
    )
