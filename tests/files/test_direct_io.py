"""Bytes from file to file, past the page cache and through it."""

import hashlib
import itertools
import mmap
import os
import random

import pytest

import labkit.files.direct_io as streams
from labkit import LabkitError
from labkit.files.direct_io import (
    PAGE,
    SourceFile,
    TargetFile,
    address,
    aligned_part,
    hash_file,
    hash_range,
    page_memory,
    room_for,
)

SIZE = 10 * PAGE + 123
CONTENT = random.Random(0).randbytes(SIZE)


@pytest.fixture(params=["past the page cache", "through it"])
def stored(request, tmp_path, monkeypatch):
    path = tmp_path / "stored"
    path.write_bytes(CONTENT)
    monkeypatch.setattr(streams, "_cached", lambda _: False)
    if request.param == "through it":
        monkeypatch.setattr(streams, "DIRECT", 0)
    return path


@pytest.fixture
def source(stored):
    source = SourceFile(stored)
    yield source
    source.close()


@pytest.mark.parametrize(
    ("start", "count"),
    [(0, SIZE), (0, PAGE), (PAGE, PAGE), (8, 16), (7, 3 * PAGE), (PAGE - 8, 2 * PAGE),
     (SIZE - 5, 5), (10 * PAGE, 123), (SIZE, 0)],
)  # fmt: skip
def test_reads_any_range(source, start, count):
    assert (
        bytes(source.read(page_memory(room_for(count)), start, count))
        == CONTENT[start : start + count]
    )


@pytest.mark.parametrize("size", [0, 1, PAGE, (2 << 20) + 1])
def test_page_memory_begins_at_a_page_and_is_as_long_as_asked(size):
    memory = page_memory(size)
    assert len(memory) == size
    if size:
        # Where there are large pages, it begins at one.
        assert (
            address(memory) % (streams.LARGE_PAGE if hasattr(mmap, "MADV_HUGEPAGE") else PAGE) == 0
        )
        memory[-1:] = b"x"


def test_page_memory_does_without_large_pages(monkeypatch):
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    memory = page_memory(3 * PAGE)
    assert len(memory) == 3 * PAGE
    assert address(memory) % PAGE == 0


@pytest.mark.parametrize("start", [SIZE - 8, SIZE - 8 - PAGE, 2 * SIZE // 8 * 8])
def test_a_file_that_became_shorter_is_said(source, start):
    count = SIZE - start + 1 if start < SIZE else 8
    with pytest.raises(LabkitError, match="stored became shorter while it was read"):
        source.read(page_memory(room_for(count)), start, count)


def test_writes_any_pieces_in_any_order(source, tmp_path):
    chance = random.Random(1)
    for number in range(20):
        cuts = sorted({0, SIZE, *(chance.randrange(SIZE) for _ in range(number))})
        target = TargetFile(tmp_path / f"target {number}", SIZE, source)
        pieces = list(itertools.pairwise(cuts))
        chance.shuffle(pieces)
        for start, stop in pieces:
            buffer = aligned_part(page_memory(room_for(SIZE)), start, stop - start)
            buffer[:] = CONTENT[start:stop]
            target.write(buffer, start)
        target.flush()
        target.close()
        assert (tmp_path / f"target {number}").read_bytes() == CONTENT


def test_writes_bytes_and_copies_in_the_kernel(source, tmp_path):
    target = TargetFile(tmp_path / "target", SIZE, source)
    target.write(CONTENT[: 3 * PAGE], 0)
    target.copy(source, 3 * PAGE, SIZE - 3 * PAGE, 3 * PAGE)
    with pytest.raises(LabkitError, match="stored became shorter while it was read"):
        target.copy(source, SIZE - 1, 2, SIZE - 1)
    target.close()
    assert (tmp_path / "target").read_bytes() == CONTENT
    assert hash_file(tmp_path / "target") == hash_file(source.path)


def test_tells_what_is_in_the_page_cache(tmp_path):
    path = tmp_path / "large"
    path.write_bytes(bytes(4 << 20))
    descriptor = os.open(path, os.O_RDONLY)
    try:
        assert streams._cached(descriptor)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            os.preadv(descriptor, [bytearray(1)], 1 << 20, os.RWF_NOWAIT)
        except BlockingIOError:
            # Asking does not fill the cache: the answer stays what it was.
            assert [streams._cached(descriptor) for _ in range(3)] == [False] * 3
        else:
            pytest.skip("this file system keeps its files in memory")
    finally:
        os.close(descriptor)


def test_a_system_that_reads_less_than_it_is_asked_for(stored, monkeypatch):
    expected = hashlib.sha256(CONTENT).hexdigest()
    whole = os.preadv
    monkeypatch.setattr(
        os, "preadv", lambda fd, buffers, *rest: whole(fd, [buffers[0][:1000]], *rest)
    )
    monkeypatch.setattr(streams, "HASH_BYTES", 3000)
    assert hash_file(stored) == expected


def test_a_file_that_became_shorter_is_not_hashed(stored):
    digest = hashlib.sha256()
    descriptor = os.open(stored, os.O_RDONLY)
    try:
        with pytest.raises(LabkitError, match="stored became shorter while it was read"):
            hash_range(digest, descriptor, stored, SIZE - 10, 11)
        hash_range(digest, descriptor, stored, 5, SIZE - 5)
    finally:
        os.close(descriptor)
    assert digest.digest() == hashlib.sha256(CONTENT[5:]).digest()
