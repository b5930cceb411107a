"""The files beside a merged model's weights: config, index, tokenizer, code and licence.

A folder may hold keys, notes and results beside its model. So files go along by name: those that
transformers loads with a model, the texts of a licence, and the code that a config names. Nothing
of it is run. The same list counts for what is merged, baked and uploaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.errors import LabkitError, shown
from labkit.files.small_files import read_json, read_text, require_inside
from labkit.models.checkpoint import LANGUAGE_CONFIGS
from labkit.models.model_files import (
    CHAT_TEMPLATES,
    CONFIG,
    INDEX,
    SINGLE,
    TEMPLATES,
    VOCABULARY,
    is_of_tokenizer,
    is_one_of,
    is_side_file,
)
from labkit.writing.card_prompts import has_chat_template
from labkit.writing.layout import output_tensors, safe_name
from labkit.writing.vocabulary_files import content_of, has_same_tokens, token_count

if TYPE_CHECKING:
    from labkit.merging.planning import Plan
    from labkit.models.source import Source

OWN_FILES = ("README.md", "recipe.yaml", "receipt.json", "gradient.png")
"""What labkit itself writes beside a model."""
LARGEST_SIDE_FILE = 200_000_000

RELATIVE_IMPORT = re.compile(r"^\s*(?:import\s+\.(\w+)|from\s+\.(\w+)\S*\s+import)", re.MULTILINE)
"""Imports of the modules beside a module, as transformers finds them
(`dynamic_module_utils.get_relative_imports`)."""


@dataclass(frozen=True)
class SideFiles:
    """The files beside a merged model's weights.

    Attributes:
        files: name in the model's folder -> the content, or the file to copy.
        notes: what is worth knowing of them.
    """

    files: dict[str, bytes | Path]
    notes: tuple[str, ...]


def side_files(plan: Plan) -> SideFiles:
    """Choose the merged model's other files.

    Config, generation config, licence, code and tokenizer come from the base; the tokenizer from
    the adapter where it ships a whole one.

    Raises:
        LabkitError: one is a link out of its folder.
    """
    notes: list[str] = []
    chosen = folder_files(plan.base.folder, plan.base.name, notes)
    files: dict[str, bytes | Path] = {**chosen, **_code(plan.base.folder, plan.base.name, notes)}
    others = False
    for term in plan.recipe.terms:
        if term.source.brings_tokenizer(plan.base):
            others |= _take_tokenizer(files, term.source, plan.base.name, notes)
    if not any(map(is_of_tokenizer, files)):
        notes.append(
            f"{shown(plan.base.name)} holds no tokenizer, and so does the merged model: put one "
            "beside it to let it answer"
        )
    if others or plan.vocabulary_size is not None:
        notes += _tokens_without_rows(plan, files)
    config = _config(plan)
    if config != plan.base.config:
        files[CONFIG] = _json_bytes(config)
    index = _index(plan)
    if index is not None:
        files[INDEX] = index
    return SideFiles(files, tuple(notes))


def folder_files(
    folder: Path, name: str, notes: list[str], wanted: Callable[[str], bool] = is_side_file
) -> dict[str, Path]:
    """Find the files of a folder that go along with its model: name -> path.

    Args:
        folder: the folder of a model or an adapter.
        name: what to call it in notes.
        notes: gets what is left out though it belongs to the model.
        wanted: whether a file of a name goes along.

    Raises:
        LabkitError: one is a link out of the folder.
    """
    found = {path.name: path for path in sorted(folder.iterdir()) if not path.is_dir()}
    if (folder / TEMPLATES).is_dir():
        require_inside(folder / TEMPLATES)
        inside = sorted((folder / TEMPLATES).glob("*.jinja"))
        found |= {f"{TEMPLATES}/{path.name}": path for path in inside}
    chosen = {}
    for key, path in found.items():
        if not wanted(key):
            continue
        if not path.is_file():
            notes.append(
                f"{shown(key)} of {shown(name)} is not copied: it is no plain file, or a link that "
                "leads nowhere"
            )
        elif path.stat().st_size > LARGEST_SIDE_FILE:
            notes.append(
                f"{shown(key)} of {shown(name)} is not copied: it is larger than "
                f"{LARGEST_SIDE_FILE // 1_000_000} MB"
            )
        else:
            require_inside(path)
            chosen[key] = path
    return chosen


def _code(folder: Path, name: str, notes: list[str]) -> dict[str, Path]:
    """Find the modules that the configs of a folder name, and those that these import."""
    configs = [path for path in sorted(folder.glob("*config.json")) if is_side_file(path.name)]
    waiting = [module for path in configs if path.is_file() for module in _named_modules(path)]
    found: dict[str, Path] = {}
    while waiting:
        path = folder / f"{waiting.pop()}.py"
        if path.name in found or not path.is_file():
            continue
        require_inside(path)
        found[path.name] = path
        waiting += [one or other for one, other in RELATIVE_IMPORT.findall(_text(path))]
    left = sorted({path.name for path in folder.glob("*.py")} - found.keys())
    if left:
        notes.append(
            f"not copied, as no config of {shown(name)} names it: {shown(', '.join(left))}"
        )
    return dict(sorted(found.items()))


def _named_modules(config: Path) -> Iterator[str]:
    """The modules in a config's `auto_map`: `{"AutoModel": "modeling_x.XModel"}`."""
    try:
        auto_map = read_json(config).get("auto_map")
    except LabkitError:
        return  # the file is copied, not judged
    entries = auto_map.values() if isinstance(auto_map, dict) else ()
    for entry in entries:
        for name in entry if isinstance(entry, list) else (entry,):
            # What has -- in it is code of another repository.
            if isinstance(name, str) and re.fullmatch(r"\w+\.\w+", name):
                yield name.partition(".")[0]


def _text(path: Path) -> str:
    try:
        return read_text(path, "module")
    except LabkitError:
        return ""  # likewise


def _take_tokenizer(
    files: dict[str, bytes | Path], source: Source, base: str, notes: list[str]
) -> bool:
    """Put a source's tokenizer in the place of the base's, if it ships a whole one.

    Returns:
        whether it does.
    """
    found = folder_files(source.folder, source.name, notes, is_of_tokenizer)
    own: dict[str, bytes | Path] = {**found}
    # Half a tokenizer would mix with the base's other half.
    if "tokenizer_config.json" not in own or not any(is_one_of(name, VOCABULARY) for name in own):
        return False
    theirs = {name: files.pop(name) for name in [*files] if is_of_tokenizer(name)}
    files |= own
    for name, path in _code(source.folder, source.name, []).items():
        files.setdefault(name, path)  # never in place of the model's code
    if has_same_tokens(own, theirs):
        for name in theirs:
            if is_one_of(name, VOCABULARY):
                files.setdefault(name, theirs[name])
    if has_chat_template(theirs) and not has_chat_template(own):
        _keep_chat_template(files, theirs)
        notes.append(
            f"the tokenizer is that of {shown(source.name)}, which has no chat template; "
            f"{shown(base)}'s is kept"
        )
    return True


def _keep_chat_template(files: dict[str, bytes | Path], theirs: dict[str, bytes | Path]) -> None:
    files |= {name: path for name, path in theirs.items() if is_one_of(name, CHAT_TEMPLATES)}
    if "chat_template.jinja" in theirs:
        return
    theirs_config, config = (
        content_of(each.get("tokenizer_config.json")) for each in (theirs, files)
    )
    if theirs_config.get("chat_template") and config:
        kept = {**config, "chat_template": theirs_config["chat_template"]}
        files["tokenizer_config.json"] = _json_bytes(kept)


def _tokens_without_rows(plan: Plan, files: dict[str, bytes | Path]) -> Iterator[str]:
    if plan.base.embedding is None:
        return
    rows = plan.output_shape(plan.base.embedding)[0]
    tokens = token_count(files)
    if tokens > rows:
        yield (
            f"the tokenizer has {tokens} tokens, and the merged model's embedding {rows} rows: it "
            "has no numbers for the last ones"
        )


def _index(plan: Plan) -> bytes | Path | None:
    """The index of a model in several files: the base's own where it still says the truth."""
    names = [safe_name(file.path.name) for file in plan.base.files]
    index = plan.base.folder / INDEX
    pickled = any(not file.header_bytes for file in plan.base.files)
    if names == [SINGLE] or (len(names) == 1 and not index.is_file()):
        return None  # an index beside a whole model is that of another
    same_sizes = plan.recipe.dtype == "auto" and plan.vocabulary_size is None
    if not pickled and not plan.added and same_sizes:
        require_inside(index)
        return index
    files = [
        (name, output_tensors(plan, file))
        for name, file in zip(names, plan.base.files, strict=True)
    ]
    content = read_json(index) if index.is_file() else {}
    metadata = content.get("metadata")
    total = sum(plan.output_bytes(tensor) for _, tensors in files for tensor in tensors)
    content["metadata"] = {**(metadata if isinstance(metadata, dict) else {}), "total_size": total}
    content["weight_map"] = {tensor.name: name for name, tensors in files for tensor in tensors}
    return _json_bytes(content)


def _config(plan: Plan) -> dict[str, Any]:
    """The merged model's config: the base's, with what the merge changes."""
    config = plan.base.config
    if plan.recipe.dtype != "auto":
        config = _config_of_dtype(config, plan.recipe.dtype)
    changes: dict[str, Any] = {}
    if plan.vocabulary_size is not None:
        changes["vocab_size"] = plan.vocabulary_size
    if plan.recipe.untie and plan.base.tied:
        changes["tie_word_embeddings"] = False
    if not changes:
        return config
    config = {**config, **changes}
    for key in LANGUAGE_CONFIGS:
        if isinstance(config.get(key), dict):
            config[key] = {**config[key], **changes}
    return config


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
