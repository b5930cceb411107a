"""The norms of a base model's tensors: one streamed pass, remembered in the user's cache."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from labkit.files.cache import cache_folder
from labkit.files.floats import ARRAYS, wide
from labkit.files.tensor_file import StoredTensor, TensorFile
from labkit.machine import in_parallel
from labkit.models.checkpoint import Checkpoint

READ_BYTES = 4 << 20
BLOCK_ELEMENTS = 1 << 16
"""Few enough that a block's float64 stays in a core's cache."""


def base_norms(base: Checkpoint, names: Sequence[str], progress: bool = True) -> dict[str, float]:
    """The Frobenius norms `‖W‖_F` of some of a base model's tensors.

    Summed in float64, in bounded memory whatever the tensors' size. What was measured once is kept
    in the user's cache, and counts as long as the file has the same path, size, time of change and
    inode.

    Args:
        base: the base model.
        names: the tensors.
        progress: show a progress bar, if anything has to be read.

    Raises:
        LabkitError: a quantised tensor, or a file that changes while it is read.
    """
    from tqdm.auto import tqdm

    wanted = set(names)
    known = {file.path: _remembered(file) for file in base.files}
    missing = [
        tensor
        for tensor in base.tensors.values()
        if tensor.name in wanted and tensor.name not in known[tensor.file]
    ]
    total = sum(tensor.nbytes for tensor in missing)
    with tqdm(
        total=total,
        unit="B",
        unit_scale=True,
        desc="norms of the base",
        disable=not (progress and total),
    ) as bar:
        for file in base.files:
            tensors = [tensor for tensor in missing if tensor.file == file.path]
            with in_parallel(_norm, tensors) as measured:
                for tensor, norm in zip(tensors, measured, strict=True):
                    known[file.path][tensor.name] = norm
                    bar.update(tensor.nbytes)
            if tensors:
                file.require_unchanged()
                _remember(file, known[file.path])
    norms = {name: norm for of_file in known.values() for name, norm in of_file.items()}
    return {name: norms[name] for name in names}


def _norm(tensor: StoredTensor) -> float:
    step = READ_BYTES // np.dtype(ARRAYS[tensor.float_dtype]).itemsize
    runs = [
        (first, min(first + step, tensor.elements)) for first in range(0, tensor.elements, step)
    ]
    squares = []
    for values in tensor.read_runs(runs):
        for first in range(0, len(values), BLOCK_ELEMENTS):
            block = wide(values[first : first + BLOCK_ELEMENTS], tensor.dtype)
            with np.errstate(over="ignore"):
                squares.append(float(np.dot(block, block)))
    return math.sqrt(sum(squares))  # of infinity and NaN too: then the base holds one


def _identity(file: TensorFile) -> dict[str, Any]:
    size, changed, inode = file.stamp
    return {
        "path": str(file.path.resolve()),
        "size": size,
        "mtime_ns": changed,
        "inode": inode,
    }


def _cache_file(file: TensorFile) -> Path:
    digest = hashlib.sha256(os.fsencode(file.path.resolve())).hexdigest()
    return cache_folder() / "norms-1" / f"{digest[:32]}.json"


def _remembered(file: TensorFile) -> dict[str, float]:
    """What the cache knows of a file; nothing if it is another file by now, or cannot be read."""
    try:
        content = json.loads(_cache_file(file).read_text(encoding="utf-8"))
        if content.pop("norms-of") != _identity(file):
            return {}
        return {str(name): float(norm) for name, norm in content["norms"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _remember(file: TensorFile, norms: dict[str, float]) -> None:
    # A cache that cannot be written is no reason to fail: the next survey measures again.
    finite = {name: norm for name, norm in norms.items() if math.isfinite(norm)}
    path = _cache_file(file)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, beside = tempfile.mkstemp(prefix=".norms-", dir=path.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                json.dump({"norms-of": _identity(file), "norms": finite}, stream)
            Path(beside).replace(path)
        except OSError:
            Path(beside).unlink(missing_ok=True)
            raise
