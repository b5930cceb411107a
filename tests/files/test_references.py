"""References: what is open stays open, and what each name means."""

from __future__ import annotations

import pytest

from labkit import Adapter, Checkpoint, LabkitError
from labkit.files.references import locate


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
