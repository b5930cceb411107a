"""Folders of a quantised model: what becomes of the tools' files, and the size of groups.

Tools rewrite the config and the tokenizer in their library's present form, note temporary paths and
leave logs. An export has the merge's own files, and of the tool's the weights and how to read them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from labkit.errors import LabkitError, shown
from labkit.exporting.job import Job
from labkit.files.small_files import read_json
from labkit.models.checkpoint import Checkpoint
from labkit.models.model_files import CONFIG, INDEX, is_side_file

WEIGHTS = ".safetensors"
QUANTISED = ("quantization_config", "quantization")
"""What tools add to a config: how the weights are read."""
ORIGINS = ("_name_or_path", "name_or_path")
"""What transformers adds to configs of models and tokenizers: where it read them."""
GPTQ_CONFIG = "quantize_config.json"
"""The same in a file of its own, where older programs look for it."""
READABLE = 0o644


def tidy(job: Job, made: Path) -> tuple[str, ...]:
    """Put what a tool made into the export, with the merge's own config and tokenizer.

    Args:
        job: the export.
        made: the folder that the tool wrote.

    Returns:
        the names of the files.

    Raises:
        LabkitError: the tool wrote no weights, or does not say how they are read.
    """
    weights = sorted(path for path in made.iterdir() if path.suffix == WEIGHTS)
    said = read_json(made / CONFIG) if (made / CONFIG).is_file() else {}
    added = {key: without_paths(said[key]) for key in QUANTISED if key in said}
    if not weights or not added:
        lacks = "weights" if not weights else f"{QUANTISED[0]} in {CONFIG}"
        raise LabkitError(f"the tool of this format wrote no {lacks}, and gave no reason")
    names = [path.name for path in weights]
    for path in weights:
        path.chmod(READABLE)
        path.rename(job.out / path.name)
    if len(weights) > 1:
        names.append(INDEX)
        shutil.copyfile(made / INDEX, job.out / INDEX)
    if (made / GPTQ_CONFIG).is_file():
        names.append(GPTQ_CONFIG)
        _write(job.out / GPTQ_CONFIG, without_paths(read_json(made / GPTQ_CONFIG)))
    for path in job.staged.rglob("*"):
        name = path.relative_to(job.staged).as_posix()
        if path.is_file() and not path.is_symlink() and is_side_file(name) and name != CONFIG:
            names.append(name)
            (job.out / name).parent.mkdir(exist_ok=True)
            _copy_without_origins(path, job.out / name)
    dtype = {key: said[key] for key in ("dtype", "torch_dtype") if key in said}
    _write(job.out / CONFIG, {**without_origins(job.model.config), **dtype, **added})
    return tuple(sorted([*names, CONFIG]))


def without_paths(said: Any) -> Any:
    """A config without this machine's paths, such as that of a tool's temporary folder."""
    return _without(said, lambda key, value: _is_path(value))


def without_origins(said: Any) -> Any:
    """The merge's own config without the folders of this machine that transformers noted in it."""
    return _without(said, lambda key, value: key in ORIGINS and _is_path(value))


def _without(said: Any, unwanted: Callable[[str, Any], bool]) -> Any:
    """What a config says, but for what is unwanted at any depth: by its key (in a list none)."""
    if isinstance(said, dict):
        kept = {key: value for key, value in said.items() if not unwanted(key, value)}
        return {key: _without(value, unwanted) for key, value in kept.items()}
    if isinstance(said, list):
        return [_without(value, unwanted) for value in said if not unwanted("", value)]
    return said


def _copy_without_origins(path: Path, to: Path) -> None:
    """Copy a file as it is, unless it is a config that names a folder of this machine."""
    if path.name.endswith("config.json"):
        said = read_json(path)
        left = without_origins(said)
        if left != said:
            _write(to, left)
            return
    shutil.copyfile(path, to)


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and Path(value).is_absolute()


def _write(path: Path, said: Any) -> None:
    path.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


def group_size(model: Checkpoint, sizes: Sequence[int]) -> int:
    """The number of neighbours in a row that share a scale: it must divide every matrix's width.

    Args:
        model: the model.
        sizes: those that the format has, the best one first.

    Returns:
        the first of them that divides the width of each matrix in a layer.

    Raises:
        LabkitError: none does.
    """
    widths = sorted(set(_widths(model)))
    for size in sizes:
        if all(width % size == 0 for width in widths):
            return size
    raise LabkitError(
        f"{shown(model.name)} has matrices that are {', '.join(map(str, widths))} columns wide, "
        f"and this format needs a multiple of {min(sizes)}; take fp8 or a GGUF format"
    )


def _widths(model: Checkpoint) -> Iterable[int]:
    return (
        tensor.shape[-1]
        for name, tensor in model.tensors.items()
        if model.layer_of(name) is not None and len(tensor.shape) == 2
    )
