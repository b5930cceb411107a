"""What a lab keeps in a file: it outlives damage, other labs and a full disk."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

from labkit.bench import journal
from labkit.bench.journal import Journal


def last_ten(entries):
    return list(entries)[-10:]


def test_what_is_added_is_read_again(tmp_path):
    path = tmp_path / "deep" / "kept.jsonl"
    kept = Journal(path, list, 100)
    assert kept.entries() == []
    kept.add({"a": 1})
    kept.add({"b": "\u2028 ünï\n"})
    assert Journal(path, list, 100).entries() == [{"a": 1}, {"b": "\u2028 ünï\n"}]


def test_damage_costs_its_own_line_alone(tmp_path):
    path = tmp_path / "kept.jsonl"
    path.write_bytes(b'{"a": 1}\n\xff\xfe\x00\n[1]\n' + b"[" * 100_000 + b'\n{"b": 2}\n{"c": ')
    kept = Journal(path, list, 100)
    assert kept.entries() == [{"a": 1}, {"b": 2}]
    kept.add({"d": 4})  # behind a line that was not ended
    assert Journal(path, list, 100).entries() == [{"a": 1}, {"b": 2}, {"d": 4}]


def test_it_stays_small(tmp_path):
    path = tmp_path / "kept.jsonl"
    kept = Journal(path, last_ten, 20)
    for number in range(100):
        kept.add({"number": number})
        assert len(path.read_bytes().splitlines()) <= 21
    assert kept.entries() == [{"number": number} for number in range(90, 100)]
    assert [one.name for one in tmp_path.iterdir() if one.name != "kept.jsonl.lock"] == [path.name]


def test_several_labs_lose_nothing_of_each_other(tmp_path):
    path = tmp_path / "kept.jsonl"

    def write(lab):
        kept = Journal(path, list, 15)
        for number in range(20):
            kept.add({"lab": lab, "number": number})

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(write, range(3)))
    found = [(one["lab"], one["number"]) for one in Journal(path, list, 15).entries()]
    assert sorted(found) == [(lab, number) for lab in range(3) for number in range(20)]


def test_where_nothing_can_be_written_nothing_breaks(tmp_path):
    (tmp_path / "file").write_text("")
    kept = Journal(tmp_path / "file" / "kept.jsonl", list, 10)
    kept.add({"a": 1})
    assert kept.entries() == []
    (tmp_path / "folder").mkdir()
    kept = Journal(tmp_path / "folder", list, 10)
    kept.add({"a": 1})
    assert kept.entries() == []


def test_a_file_that_is_too_large_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "LARGEST", 10)
    path = tmp_path / "kept.jsonl"
    path.write_text(json.dumps({"long": "x" * 20}) + "\n")
    kept = Journal(path, list, 1)
    assert kept.entries() == []
    kept.add({"a": 1})
    assert path.read_text() == json.dumps({"long": "x" * 20}) + "\n"
