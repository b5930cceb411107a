"""References: what is open stays open, and what each name means."""

from __future__ import annotations

from labkit import Adapter, Checkpoint


def test_what_is_open_is_not_opened_again(tiny_base, tiny_adapter):
    for kind, folder in ((Checkpoint, tiny_base), (Adapter, tiny_adapter)):
        opened = kind.open(str(folder))
        assert type(opened) is kind
        assert kind.open(opened) is opened
        assert kind.open(folder).folder == opened.folder
