"""A folder for the tools to read: the model's weights, config and tokenizer, and nothing else.

Tools take files of labkit's for their own (llm-compressor any `recipe.yaml`), run code that lies
beside a model, or write into the folder that they read. So they get one of links and copies.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from labkit.errors import LabkitError, shown
from labkit.files.small_files import read_json
from labkit.models.checkpoint import Checkpoint
from labkit.models.model_files import CONFIG, INDEX, SINGLE, is_legal, is_side_file

AUTO_MAP = "auto_map"
"""The key of a config that names code to run."""


def stage(model: Checkpoint, folder: Path) -> None:
    """Make the folder that the tools read.

    Args:
        model: the model.
        folder: the folder to make.

    Raises:
        LabkitError: a config names code to run; weights are pickled; the model is quantised; or
            what belongs beside it is a link out of its folder.
    """
    from labkit.writing.side_files import folder_files

    require_plain_model(model)
    pickled = [file.path.name for file in model.files if file.path.suffix != ".safetensors"]
    if pickled:
        raise LabkitError(
            f"{shown(model.folder)} keeps its weights in {shown(pickled[0])}, and tools would run "
            "what is pickled there; save it as safetensors first (transformers' save_pretrained)"
        )
    folder.mkdir()
    alone = len(model.files) == 1
    for file in model.files:
        path = file.path
        # Tools look for the usual name; one file of another name is the model all the same.
        name = SINGLE if alone else path.name
        (folder / name).symlink_to(path.resolve())
    if not alone and (model.folder / INDEX).is_file():
        shutil.copyfile(model.folder / INDEX, folder / INDEX)
    beside = folder_files(
        model.folder, model.name, [], lambda name: is_side_file(name) and not is_legal(name)
    )
    for name, path in beside.items():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, folder / name)
    (folder / CONFIG).write_text(json.dumps(model.config, indent=2), encoding="utf-8")


def require_plain_model(model: Checkpoint) -> None:
    """Check that tools can read a model without running code from its folder.

    Raises:
        LabkitError: they cannot; or it is quantised already.
    """
    model.require_unquantised()
    for name in (CONFIG, "tokenizer_config.json"):
        path = model.folder / name
        if path.is_file() and AUTO_MAP in read_json(path):
            raise LabkitError(
                f"{shown(path)} has {AUTO_MAP}, which names code that a tool would have to run; "
                "labkit runs none: export a model that transformers knows by itself"
            )
