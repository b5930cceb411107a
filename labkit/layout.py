"""How a merged model lies on disk, piece by piece, and how each piece comes about.

`write` puts the pieces into files and `verify` compares them with files; both see the same pieces.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from labkit.arithmetic import BlockMerger
from labkit.checkpoint import INDEX, LANGUAGE_CONFIGS
from labkit.delta import LowRank
from labkit.errors import LabkitError, shown
from labkit.tensor_file import FLOATS, StoredTensor, TensorFile, header_for, read_fully

if TYPE_CHECKING:
    from labkit.plan import Plan

COPY_BYTES = 64 << 20
"""Bytes copied at a time: few enough to cancel quickly."""
MERGE_BYTES = {"cpu": 2 << 20, "cuda": 32 << 20}
"""Bytes of the base read at a time into memory, by the kind of device that merges them."""
BLOCK_ELEMENTS = {"cpu": 1 << 17, "cuda": 1 << 24}
"""Elements merged at a time: on a CPU few enough that their float64 stays in its cache."""

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja",
    "chat_template.json",
)  # fmt: skip
SIDE_SUFFIXES = (".json", ".txt", ".model", ".jinja", ".py")
LEGAL_NAMES = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY")
OWN_FILES = ("README.md", "recipe.yaml", "receipt.json", "gradient.png")
LARGEST_SIDE_FILE = 200_000_000


@dataclass(frozen=True)
class Piece:
    """A run of bytes of an output file, and where it comes from.

    Attributes:
        target: its first byte in the output file.
        nbytes: its length in the output file.
        source: its first byte in the base's file.
        source_bytes: its length there.
        tensor: the tensor whose rows it holds, or None for bytes that are copied as they are.
        rows: the first row and the one after the last, if `tensor` is given.
    """

    target: int
    nbytes: int
    source: int
    source_bytes: int
    tensor: StoredTensor | None = None
    rows: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class OutputFile:
    """One safetensors file of the merged model.

    Attributes:
        source: the base's file of the same name.
        header: the bytes before the first tensor.
        pieces: what follows the header, in order and without gaps.
    """

    source: TensorFile
    header: bytes
    pieces: tuple[Piece, ...]

    @property
    def name(self) -> str:
        """Its name in the folder."""
        return self.source.path.name

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return len(self.header) + sum(piece.nbytes for piece in self.pieces)

    @property
    def untouched(self) -> bool:
        """Whether it is the base's file, byte for byte."""
        return all(piece.tensor is None for piece in self.pieces)


def output_files(plan: Plan, device: str) -> list[OutputFile]:
    """Lay out the merged model: the base's files under their names, in their tensor order."""
    return [_output_file(plan, file, MERGE_BYTES[device]) for file in plan.base.files]


def _output_file(plan: Plan, file: TensorFile, merge_bytes: int) -> OutputFile:
    dtypes = [plan.output_dtype(tensor) for tensor in file.tensors]
    if all(tensor.dtype == dtype for tensor, dtype in zip(file.tensors, dtypes, strict=True)):
        header = file.header_bytes
    else:
        header = header_for(
            (
                (tensor.name, dtype, tensor.shape)
                for tensor, dtype in zip(file.tensors, dtypes, strict=True)
            ),
            file.metadata,
        )
    return OutputFile(file, header, tuple(_pieces(plan, file, len(header), merge_bytes)))


def _pieces(plan: Plan, file: TensorFile, target: int, merge_bytes: int) -> Iterator[Piece]:
    copy_start = copy_stop = len(file.header_bytes)

    def copies() -> Iterator[Piece]:
        nonlocal target
        for source in range(copy_start, copy_stop, COPY_BYTES):
            count = min(COPY_BYTES, copy_stop - source)
            yield Piece(target, count, source, count)
            target += count

    for tensor in file.tensors:
        same_dtype = plan.output_dtype(tensor) == tensor.dtype
        if same_dtype and tensor.name not in plan.changes:
            copy_stop = tensor.stop
            continue
        yield from copies()
        copy_start = copy_stop = tensor.stop
        rows, columns = matrix_shape(tensor)
        row_bytes = tensor.nbytes // rows if rows else 0
        out_bytes = plan.output_bytes(tensor) // rows if rows else 0
        step = max(1, merge_bytes // max(row_bytes, 1))
        for start in range(0, rows if columns else 0, step):
            stop = min(start + step, rows)
            count = (stop - start) * out_bytes
            yield Piece(
                target,
                count,
                tensor.start + start * row_bytes,
                (stop - start) * row_bytes,
                tensor,
                (start, stop),
            )
            target += count
    yield from copies()


def matrix_shape(tensor: StoredTensor) -> tuple[int, int]:
    """See a tensor as a matrix; of a vector or a scalar, one of a single column."""
    if len(tensor.shape) == 2:
        return tensor.shape[0], tensor.shape[1]
    return tensor.elements, 1


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Keep torch's operations in the thread that calls them.

    Blocks are small and merged by several threads already; torch's own would only wait for them.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class PieceMaker:
    """Makes the bytes of merged pieces. May be used by several threads at once."""

    def __init__(self, plan: Plan, device: torch.device) -> None:
        self.plan = plan
        self.device = device
        self._block_elements = BLOCK_ELEMENTS[device.type]
        self._own = threading.local()

    def update(self, tensor: StoredTensor) -> LowRank | None:
        """Read what is added to a tensor, onto the device; None if only its dtype changes."""
        change = self.plan.changes.get(tensor.name)
        return change.update().to(self.device) if change else None

    def make(
        self, file: OutputFile, piece: Piece, descriptor: int, update: LowRank | None
    ) -> tuple[memoryview, float, float]:
        """Read a piece's rows from the base and merge them.

        Args:
            file: the output file it belongs to.
            piece: the piece; its `tensor` is given.
            descriptor: of the base's file, open for reading.
            update: what `update(piece.tensor)` gave.

        Returns:
            its bytes, valid until this thread makes another piece, `‖W' - W‖²`, and
            `‖(W' - W) - wΔW‖²`.

        Raises:
            LabkitError: a number that is finite in the base is not any more.
        """
        tensor = piece.tensor
        assert tensor is not None  # noqa: S101 - copied pieces are not made
        merger, source, target = self._working_space(piece)
        read_fully(descriptor, source, piece.source, file.source.path)
        _, columns = matrix_shape(tensor)
        dtype = getattr(torch, FLOATS[self.plan.output_dtype(tensor)])
        base = torch.frombuffer(source, dtype=getattr(torch, tensor.torch_dtype))
        base = base.view(-1, columns)
        merged = torch.frombuffer(target, dtype=dtype).view(-1, columns)
        squared = missing = 0.0
        step = max(1, self._block_elements // columns)
        for start in range(0, len(base), step):
            rows = base[start : start + step].to(self.device)
            if update is None:
                merged[start : start + step] = rows.to(dtype)
            else:
                block, change, lacks = merger.merge(rows, update, piece.rows[0] + start, dtype)
                merged[start : start + step] = block
                squared += change
                missing += lacks
        # The sum of squares of the change is not finite if any element of it is not.
        if not math.isfinite(squared) or (update is None and dtype == torch.float16):
            _refuse_overflow(base, merged, tensor, dtype)
        return target, squared, missing

    def _working_space(self, piece: Piece) -> tuple[BlockMerger, memoryview, memoryview]:
        own = self._own
        if not hasattr(own, "merger"):
            own.merger = BlockMerger(self.device)
            own.source, own.target = bytearray(), bytearray()
        if len(own.source) < piece.source_bytes:
            own.source = bytearray(piece.source_bytes)
        if len(own.target) < piece.nbytes:
            own.target = bytearray(piece.nbytes)
        return (
            own.merger,
            memoryview(own.source)[: piece.source_bytes],
            memoryview(own.target)[: piece.nbytes],
        )


def _refuse_overflow(
    base: torch.Tensor, merged: torch.Tensor, tensor: StoredTensor, dtype: torch.dtype
) -> None:
    lost = base.isfinite() & ~merged.isfinite()
    if bool(lost.any()):
        raise LabkitError(
            f"{int(lost.sum())} numbers of {shown(tensor.name)!r} become too large for "
            f"{str(dtype).removeprefix('torch.')} (its largest is {torch.finfo(dtype).max:g}); "
            "choose another --dtype, such as bfloat16 or float32, or smaller weights"
        )


def side_files(plan: Plan) -> dict[str, bytes | Path]:
    """The merged model's other files: name -> content, or the file to copy.

    Config, generation config, licence and tokenizer come from the base; the tokenizer from the
    adapter where it ships a whole one.
    """
    base = plan.base.folder
    shards = {file.path.name for file in plan.base.files}
    files: dict[str, bytes | Path] = {}
    for path in sorted(base.iterdir()):
        wanted = path.name.startswith(LEGAL_NAMES) or (
            path.suffix in SIDE_SUFFIXES
            and not path.name.endswith(".index.json")
            and path.name not in OWN_FILES
        )
        small = path.is_file() and path.stat().st_size <= LARGEST_SIDE_FILE
        if wanted and small and path.name not in shards:
            files[path.name] = path
    for term in plan.recipe.terms:
        own = [term.adapter.folder / name for name in TOKENIZER_FILES]
        own = [path for path in own if path.is_file()]
        names = {path.name for path in own}
        # Half a tokenizer would mix with the base's other half.
        if "tokenizer_config.json" in names and names & {"tokenizer.json", "tokenizer.model"}:
            for name in TOKENIZER_FILES:
                files.pop(name, None)
            files |= {path.name: path for path in own}
    if plan.recipe.dtype != "auto":
        files["config.json"] = _json_bytes(_config_of_dtype(plan.base.config, plan.recipe.dtype))
    index = base / INDEX
    if index.is_file():
        files[INDEX] = index
        if plan.recipe.dtype != "auto":
            content = json.loads(index.read_text(encoding="utf-8"))
            total = sum(map(plan.output_bytes, plan.base.tensors.values()))
            content["metadata"] = {**content.get("metadata", {}), "total_size": total}
            files[INDEX] = _json_bytes(content)
    return files


def _config_of_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    changed = dict(config)
    for key in ("torch_dtype", "dtype"):
        if key in config:
            changed[key] = dtype
    if "torch_dtype" not in config and "dtype" not in config:
        changed["dtype"] = dtype
    for key in LANGUAGE_CONFIGS:
        if isinstance(config.get(key), dict):
            changed[key] = _config_of_dtype(config[key], dtype)
    return changed


def _json_bytes(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
