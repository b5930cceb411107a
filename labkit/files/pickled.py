"""Reads torch's `.bin` files: which tensor lies where, without running or loading anything.

Such a file is a zip archive: a pickle that names the tensors, and their bytes, uncompressed. The
pickle is read by torch's restricted unpickler (`weights_only=True`), which builds tensors and plain
containers and runs nothing; on the `meta` device it allocates no tensors either. Before that its
steps are counted, and what they name: the restricted unpickler also knows things that take as much
memory as a number says (`bytearray`), which no file of tensors needs.
"""

from __future__ import annotations

import io
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import Any

from labkit.errors import LabkitError, shown
from labkit.files.small_files import require_plain
from labkit.files.tensor_file import (
    FLOAT_CODES,
    StoredTensor,
    TensorFile,
    require_name,
    stamp_of,
)

CODES = {
    **FLOAT_CODES, "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8",
    "bool": "BOOL",
}  # fmt: skip
DTYPES = frozenset(CODES) | {
    "float8_e4m3fn", "float8_e5m2", "complex64", "complex128", "uint16", "uint32", "uint64",
}  # fmt: skip
"""What torch calls its dtypes, for pickles that name one."""
LARGEST_PICKLE = 5_000_000
"""Bytes of the pickle in the archive (names and shapes, never tensors), and of the archive's list
of its records: some 200 and 70 for each tensor."""
MOST_STEPS = 1_000_000
"""Steps of the pickle: 40 for each tensor."""
NEEDED = frozenset({
    "collections OrderedDict", "torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_tensor_v3", "torch._utils _rebuild_parameter", "torch Size",
    "torch.storage UntypedStorage", "torch.storage TypedStorage",
})  # fmt: skip
"""What a pickle of tensors names, beside torch's dtypes and kinds of storage."""


def open_pickled(path: Path) -> TensorFile:
    """Find every tensor of a `.bin` file.

    Raises:
        LabkitError: no such archive, one that holds anything but tensors by name, or tensors that
            do not lie in it as they are.
    """
    try:
        status = require_plain(path)
        records = _records(path)
        content = _load(path)
    except OSError as error:
        raise LabkitError(f"cannot read {shown(path)}: {error.strerror or error}") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise LabkitError(
            f"{shown(path)} holds {type(content).__name__}, expected tensors by name; convert the "
            "model to safetensors"
        )
    tensors = [_tensor(name, value, path, records) for name, value in content.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.name))
    return TensorFile(path, b"", {"format": "pt"}, tuple(tensors), status.st_size, stamp_of(status))


class _Archive(io.BufferedReader):
    """An archive whose list of records has an end: `zipfile` reads all of it in one piece."""

    def read(self, size: int | None = -1) -> bytes:
        """Read bytes.

        Raises:
            ValueError: more than list or pickle take.
        """
        if size is not None and size > LARGEST_PICKLE:
            raise ValueError(
                f"it lists its records in {size} bytes; expected {LARGEST_PICKLE} at most"
            )
        return super().read(size)


def _records(path: Path) -> dict[int, int]:
    """First byte -> length of every record of tensor bytes in the archive."""
    records: dict[int, int] = {}
    try:
        with _Archive(io.FileIO(path)) as file, zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            pickles = [entry for entry in entries if entry.filename.endswith("data.pkl")]
            if len(pickles) != 1 or len({entry.filename for entry in entries}) < len(entries):
                raise ValueError(f"{len(pickles)} times data.pkl, or another record twice")
            for entry in entries:
                of_tensor = "/data/" in entry.filename
                if entry.compress_type or entry.compress_size != entry.file_size:
                    raise LabkitError(
                        f"{shown(path)} holds compressed tensors, which torch does not write; get "
                        "the file again, or convert it to safetensors"
                    )
                if not of_tensor and entry.file_size > LARGEST_PICKLE:
                    raise LabkitError(f"{shown(path)} names more than a model's tensors")
                if not of_tensor:
                    continue
                # The local header: 26 bytes, the lengths of name and extra field, and these two.
                file.seek(entry.header_offset + 26)
                name, extra = struct.unpack("<HH", file.read(4))
                records[entry.header_offset + 30 + name + extra] = entry.file_size
            _require_tensors_only(archive.read(pickles[0]), path)
    except (zipfile.BadZipFile, struct.error, ValueError, NotImplementedError) as error:
        raise LabkitError(
            f"{shown(path)} is no whole archive of torch ({shown(error)}); get the file again, or "
            "convert it to safetensors"
        ) from error
    return records


def _require_tensors_only(pickle: bytes, path: Path) -> None:
    """Check that a pickle names only what tensors are made of, in not too many steps.

    Raises:
        LabkitError: it names more.
        ValueError: it is no pickle.
    """
    for number, (step, argument, _) in enumerate(pickletools.genops(pickle)):
        if number == MOST_STEPS:
            raise LabkitError(f"{shown(path)} names more than a model's tensors")
        if step.name not in ("GLOBAL", "STACK_GLOBAL", "INST"):
            continue
        module, _, name = str(argument).partition(" ")
        of_torch = module == "torch" and (name in DTYPES or name.endswith("Storage"))
        if not of_torch and argument not in NEEDED:
            raise LabkitError(
                f"{shown(path)} is refused by torch's restricted reader or by labkit's, as it "
                f"names {shown(argument)!r}, which would run code, or which no file of tensors "
                "needs; convert it to safetensors"
            )


def _load(path: Path) -> Any:
    import torch

    try:
        return torch.load(path, map_location="meta", weights_only=True, mmap=True)
    except OSError:
        raise
    # Whatever the restricted unpickler stumbles over has one answer.
    except Exception as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise LabkitError(
            f"{shown(path)} is refused by torch's restricted reader (weights_only=True), as it "
            f"would run code or is damaged: {shown(first)}; convert it to safetensors"
        ) from error


def _tensor(name: Any, value: Any, path: Path, records: dict[int, int]) -> StoredTensor:
    import torch

    where = f"tensor {shown(name)!r} in {shown(path)}"
    if not isinstance(name, str) or not isinstance(value, torch.Tensor):
        raise LabkitError(
            f"{shown(path)} holds {type(value).__name__} under {shown(name)!r}; expected only "
            "tensors; convert it to safetensors"
        )
    code = CODES.get(str(value.dtype).removeprefix("torch."))
    if code is None or not value.is_contiguous() or value.layout != torch.strided:
        raise LabkitError(
            f"{where} is a {str(value.dtype).removeprefix('torch.')} tensor that does not lie in "
            "one piece; convert the model to safetensors"
        )
    require_name(name, path)
    first = getattr(value.untyped_storage(), "_checkpoint_offset", None)
    if first is None:
        raise LabkitError(f"{where} cannot be found by this torch; convert it to safetensors")
    offset = value.storage_offset() * value.element_size()
    nbytes = value.numel() * value.element_size()
    if nbytes and (first not in records or offset + nbytes > records[first]):
        raise LabkitError(f"{where} lies outside its record; the file is damaged: get it again")
    start = first + offset
    return StoredTensor(name, path, code, tuple(value.shape), start, start + nbytes)
