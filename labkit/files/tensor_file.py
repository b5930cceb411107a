"""Reads safetensors files by their headers: where each tensor lies, without loading any.

The format: eight bytes with the header's length (little-endian), the header as JSON, then the
tensors' bytes without gaps. https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from labkit.errors import LabkitError, shown
from labkit.files.floats import ARRAYS, wide
from labkit.files.small_files import require_plain
from labkit.machine import many_objects

LONGEST_HEADER = 25_000_000
"""Bytes of a header. safetensors itself accepts four times as many, and no model has a tenth: the
largest open ones have some thousand tensors in a file, of 120 bytes each in its header."""
MOST_VALUES = 1_000_000
"""Values in a header: six for each tensor. Short ones take fifty times their bytes of memory."""
LONGEST_NAME = 1_000
"""Characters of a tensor's name."""
MOST_DIMENSIONS = 64
"""Numbers of a shape: torch itself takes no more."""

GATHERED_ELEMENTS = 1 << 19
"""Elements among which single ones are looked up at a time."""

ITEM_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8,
    "U64": 64, "U32": 32, "U16": 16, "U8": 8,
    "BOOL": 8, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
"""Bits of one element, by safetensors' name of the dtype."""

FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""The dtypes that can be merged, and torch's names for them."""
FLOAT_CODES = {name: code for code, name in FLOATS.items()}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor as it lies in a file.

    Attributes:
        name: its name.
        file: the file that holds it.
        dtype: safetensors' name of its dtype, such as `BF16`.
        shape: its shape.
        start: its first byte, counted from the start of the file.
        stop: the byte after its last.
    """

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return self.stop - self.start

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Its rows and columns, seen as a matrix.

        A vector or a scalar has a single column; of a stack of matrices the rows follow each other.
        """
        if len(self.shape) < 2:
            return self.elements, 1
        columns = self.shape[-1]
        return (self.elements // columns if columns else 0), columns

    def read_rows(self, start: int, stop: int) -> np.ndarray:
        """Read some rows of the tensor seen as a matrix, in float64; rows behind its last are 0.

        Raises:
            LabkitError: as `read`.
        """
        rows, columns = self.matrix_shape
        row_bytes = self.nbytes // rows if rows else 0
        there = max(0, min(stop, rows) - start)
        first = self.start + start * row_bytes
        part = StoredTensor(
            self.name, self.file, self.dtype, (there, columns), first, first + there * row_bytes
        ).read()
        if there == stop - start:
            return part
        return np.concatenate([part, np.zeros((stop - start - there, columns))])

    def read_entries(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Read single elements of the tensor seen as a matrix, in float64.

        Args:
            rows: their rows, which the tensor has.
            columns: their columns.

        Raises:
            LabkitError: as `read`.
        """
        count, width = self.matrix_shape
        found = np.empty(len(rows))
        step = max(1, GATHERED_ELEMENTS // max(1, width))
        for first in range(int(rows.min()), int(rows.max()) + 1, step):
            here = (rows >= first) & (rows < first + step)
            if not here.any():
                continue
            last = int(rows[here].max()) + 1
            start, stop = (self.start + row * self.nbytes // count for row in (first, last))
            part = replace(self, shape=(last - first, width), start=start, stop=stop)
            stored = np.frombuffer(part.read_bytes(), ARRAYS[self.float_dtype])
            # Of what is read only these few are widened.
            wanted = stored[(rows[here] - first) * width + columns[here]]
            found[here] = wide(wanted, self.dtype)
        return found

    def blocks(self, elements: int, rows: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """Read the tensor, seen as a matrix, in blocks of whole rows, in float64.

        Args:
            elements: numbers of a block, at most, unless a single row has more.
            rows: how many rows to read, those behind the tensor's last as 0; its own if left out.

        Yields:
            the number of a block's first row, and its rows.

        Raises:
            LabkitError: as `read`.
        """
        count, columns = self.matrix_shape
        count = count if rows is None else rows
        step = max(1, elements // max(columns, 1))
        for start in range(0, count, step):
            yield start, self.read_rows(start, min(start + step, count))

    def read_runs(self, runs: Iterable[tuple[int, int]]) -> Iterator[np.ndarray]:
        """Read runs of elements, one after the other, into the same little memory.

        Args:
            runs: of each run its first element, and the one after its last, in the order in which
                the file has them.

        Yields:
            The elements of each run as they are stored, in the dtype that `ARRAYS` names. The next
            run overwrites them.

        Raises:
            LabkitError: as `read`.
        """
        dtype = np.dtype(ARRAYS[self.float_dtype])
        buffer = bytearray()
        try:
            with self.file.open("rb", buffering=0) as file:
                for first, last in runs:
                    size = (last - first) * dtype.itemsize
                    if len(buffer) < size:
                        buffer = bytearray(size)
                    view = memoryview(buffer)[:size]
                    position = self.start + first * dtype.itemsize
                    read_fully(file.fileno(), view, position, self.file)
                    yield np.frombuffer(view, dtype)
        except OSError as error:
            raise LabkitError(f"cannot read {shown(self.file)}: {error.strerror}") from error

    def read(self) -> np.ndarray:
        """Read the whole tensor from its file, in float64.

        Raises:
            LabkitError: a dtype that is not a floating-point number of 16 to 64 bits, or a file
                that is gone or shorter than it was.
        """
        stored = np.frombuffer(self.read_bytes(), ARRAYS[self.float_dtype])
        return wide(stored, self.dtype).reshape(self.shape)

    def read_bytes(self) -> bytearray:
        """Read the tensor's bytes as they are.

        Raises:
            LabkitError: a file that is gone or shorter than it was.
        """
        buffer = bytearray(self.nbytes)
        try:
            with self.file.open("rb", buffering=0) as file:
                read_fully(file.fileno(), buffer, self.start, self.file)
        except OSError as error:
            raise LabkitError(f"cannot read {shown(self.file)}: {error.strerror}") from error
        return buffer

    @property
    def float_dtype(self) -> str:
        """Its dtype, one that labkit calculates with.

        Raises:
            LabkitError: a dtype that labkit does not calculate with.
        """
        if self.dtype not in FLOATS:
            raise LabkitError(
                f"tensor {shown(self.name)!r} in {shown(self.file)} is stored as {self.dtype}; "
                f"labkit calculates with {', '.join(FLOATS)}; use the model's unquantised files"
            )
        return self.dtype


@dataclass(frozen=True)
class TensorFile:
    """One safetensors file: its header as it stands, and its tensors in the order of their bytes.

    Attributes:
        path: the file.
        header_bytes: the length and the header, as they stand at the start of the file.
        metadata: the header's `__metadata__`.
        tensors: every tensor, in the order of its bytes.
        size: the file's size in bytes.
        stamp: what the file system said of the file, to notice that it changes later.
    """

    path: Path
    header_bytes: bytes
    metadata: dict[str, str]
    tensors: tuple[StoredTensor, ...]
    size: int
    stamp: tuple[int, int, int]

    def require_unchanged(self) -> None:
        """Check that the file is still the one that was opened.

        Raises:
            LabkitError: it was changed, replaced or removed since.
        """
        try:
            found: tuple[int, int, int] | None = stamp_of(self.path.stat())
        except OSError:
            found = None
        if found != self.stamp:
            what = "removed" if found is None else "changed"
            raise LabkitError(
                f"{shown(self.path)} was {what} while labkit worked with it; leave it alone, and "
                "start again"
            )


def open_tensor_file(path: Path) -> TensorFile:
    """Read and check the header of a safetensors file.

    Raises:
        LabkitError: anything that does not agree with the format: which file, which tensor, what
            was expected and what was found.
    """
    try:
        require_plain(path)
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            size = status.st_size
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if LONGEST_HEADER < length <= size - 8:
                raise LabkitError(
                    f"{shown(path)} has a header of {length} bytes; labkit reads "
                    f"{LONGEST_HEADER} at most"
                )
            if len(prefix) < 8 or length > size - 8:
                raise LabkitError(
                    f"{shown(path)} is not a whole safetensors file: it has {size} bytes, and its "
                    f"header claims {length if len(prefix) == 8 else 'none'}; get the file again"
                )
            header = file.read(length)
    except OSError as error:
        raise LabkitError(f"cannot read {shown(path)}: {error.strerror}") from error
    metadata, tensors = _read_header(header, path, 8 + length, size)
    return TensorFile(path, prefix + header, metadata, tensors, size, stamp_of(status))


@many_objects()
def _read_header(
    header: bytes, path: Path, start: int, size: int
) -> tuple[dict[str, str], tuple[StoredTensor, ...]]:
    """The metadata and the tensors, which lie in the file from `start` to `size`.

    Raises:
        LabkitError: as `open_tensor_file`.
    """
    entries = _json_object(header, path)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise LabkitError(
            f"the header of {shown(path)} is damaged: __metadata__ is not an object of texts"
        )
    tensors = [_entry(name, entry, path, start) for name, entry in entries.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.stop))
    end = start
    for tensor in tensors:
        if tensor.start != end:
            raise LabkitError(
                f"{shown(path)} is damaged: tensor {shown(tensor.name)!r} starts at byte "
                f"{tensor.start}, expected {end} (tensors follow each other without gap or "
                "overlap); get the file again"
            )
        end = tensor.stop
    if end != size:
        raise LabkitError(
            f"{shown(path)} is damaged: its tensors end at byte {end} and the file at byte {size}; "
            "it was cut off or something was appended; get the file again"
        )
    return metadata, tuple(tensors)


def header_for(tensors: Iterator[tuple[str, str, tuple[int, ...]]], metadata: Any) -> bytes:
    """Write the length and header of a safetensors file.

    Args:
        tensors: name, dtype and shape of each tensor, in the order of their bytes.
        metadata: the header's `__metadata__`, or nothing.
    """
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    position = 0
    for name, dtype, shape in tensors:
        end = position + math.prod(shape) * ITEM_BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the format asks for tensors aligned to eight bytes
    return len(text).to_bytes(8, "little") + text


def read_fully(descriptor: int, buffer: bytearray | memoryview, start: int, path: Path) -> None:
    """Fill `buffer` from a file, from byte `start` on.

    Raises:
        LabkitError: the file ends too early, which means that it changed since it was opened.
    """
    view = memoryview(buffer)
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], start + done)
        if count == 0:
            raise LabkitError(
                f"{shown(path)} became shorter while it was read: it ends at byte {start + done}; "
                "leave the file alone while labkit reads it, and start again"
            )
        done += count


def stamp_of(status: os.stat_result) -> tuple[int, int, int]:
    """What the file system says of a file's content: size, time of change, and which file."""
    return status.st_size, status.st_mtime_ns, status.st_ino


def _json_object(text: bytes, path: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            counts = Counter(name for name, _ in pairs)
            twice = next(name for name, count in counts.items() if count > 1)
            raise LabkitError(f"the header of {shown(path)} names {shown(twice)!r} twice")
        return found

    if text.count(b",") >= MOST_VALUES:
        raise LabkitError(
            f"the header of {shown(path)} holds more than {MOST_VALUES:,} values; no model does"
        )
    try:
        value = json.loads(text.decode(), object_pairs_hook=unique)
        # JSON can spell what no text holds (half a pair of UTF-16), and safetensors refuses it.
        "".join(_texts(value)).encode()
    except (ValueError, RecursionError) as error:
        raise LabkitError(
            f"the header of {shown(path)} is not JSON: {shown(error)}; get the file again"
        ) from error
    if not isinstance(value, dict):
        raise LabkitError(f"the header of {shown(path)} is not a JSON object; get the file again")
    return value


def _texts(header: Any) -> Iterator[str]:
    """The names in a header, and the texts of its metadata."""
    if not isinstance(header, dict):
        return
    yield from header
    metadata = header.get("__metadata__")
    if isinstance(metadata, dict):
        yield from metadata
        yield from filter(lambda value: isinstance(value, str), metadata.values())


def _entry(name: str, entry: Any, path: Path, base: int) -> StoredTensor:
    try:
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError) as error:
        raise LabkitError(
            f"{_where(name, path)} has no dtype, shape or data_offsets; get the file again"
        ) from error
    require_name(name, path)
    if dtype not in ITEM_BITS if isinstance(dtype, str) else True:
        raise LabkitError(f"{_where(name, path)} has the unknown dtype {shown(dtype)!r}")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise LabkitError(
            f"{_where(name, path)} has shape {shown(shape)} and offsets {shown(offsets)}; expected "
            "lists of whole numbers from 0"
        )
    if len(shape) > MOST_DIMENSIONS:
        raise LabkitError(
            f"{_where(name, path)} has a shape of {len(shape)} numbers; expected at most "
            f"{MOST_DIMENSIONS}"
        )
    start, stop = offsets
    expected = math.prod(shape) * ITEM_BITS[dtype]
    if stop - start != expected // 8 or expected % 8:
        raise LabkitError(
            f"{_where(name, path)} has {stop - start} bytes, but {dtype} of shape {shown(shape)} "
            f"takes {expected // 8}; get the file again"
        )
    return StoredTensor(name, path, dtype, tuple(shape), base + start, base + stop)


def _where(name: str, path: Path) -> str:
    return f"tensor {shown(name)!r} in {shown(path)}"


def require_name(name: str, path: Path) -> None:
    """Check that a tensor's name is not endless: names are compared in many ways.

    Raises:
        LabkitError: it is longer than any model's.
    """
    if len(name) > LONGEST_NAME:
        raise LabkitError(
            f"{_where(name, path)} has a name of {len(name)} characters; expected at most "
            f"{LONGEST_NAME}"
        )


def _naturals(value: Any) -> bool:
    # bool is an int to Python, and not to the format.
    return isinstance(value, list) and all(
        type(number) is int and 0 <= number < 2**63 for number in value
    )
