"""A base model's folder, opened lazily: its config, and where each tensor lies."""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.errors import LabkitError, shown
from labkit.reference import Located, locate, read_json
from labkit.tensor_file import FLOATS, StoredTensor, TensorFile, open_tensor_file

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DOWNLOADS = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "LICENSE*", "NOTICE*")
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
"""What configs call the number of decoder layers: Llama and most others, GPT-2, GPT-Neo, MPT."""
LANGUAGE_CONFIGS = ("text_config", "llm_config", "language_config")
"""Where the config of a vision-language model keeps its language model's part."""


class Checkpoint:
    """A base model on disk. Opening one reads JSON and headers only, never a tensor.

    Attributes:
        config: the model's `config.json`.
        files: the safetensors files, in the order of their names.
        tensors: name -> where it lies, in the order of the files and of the bytes in them.
        layers: the number of decoder layers.
        layer_prefix: what comes before the layer's number in a tensor's name: `model.layers`.
    """

    def __init__(self, reference: str | Path) -> None:
        """Open a folder or a hub id (`owner/name[@revision][:subfolder]`).

        Raises:
            LabkitError: nothing there, files that are missing or damaged, or a config whose number
                of layers the tensors' names do not show.
        """
        self._located: Located = locate(reference, "base model", DOWNLOADS)
        self.config: dict[str, Any] = read_json(self.folder / "config.json")
        self.files: tuple[TensorFile, ...] = tuple(_tensor_files(self.folder))
        self.tensors: dict[str, StoredTensor] = {}
        for file in self.files:
            for tensor in file.tensors:
                if tensor.name in self.tensors:
                    raise LabkitError(
                        f"tensor {shown(tensor.name)!r} stands both in "
                        f"{shown(self.tensors[tensor.name].file.name)} and in "
                        f"{shown(file.path.name)} of {shown(self.folder)}; remove one of the files"
                    )
                self.tensors[tensor.name] = tensor
        self.layer_prefix, self.layers = _find_layers(self.config, self.tensors, self.folder)

    @property
    def folder(self) -> Path:
        """Where the files are on this machine."""
        return self._located.folder

    @property
    def reference(self) -> str:
        """The folder or hub id it was opened by."""
        return self._located.reference

    @property
    def revision(self) -> str | None:
        """The commit of the hub's repository; None for a local folder."""
        return self._located.revision

    @property
    def repository(self) -> str | None:
        """The hub id without revision; None for a local folder."""
        return self._located.repository

    @property
    def name(self) -> str:
        """A short name to show: the folder's, or the hub repository's."""
        return self._located.name

    @cached_property
    def nbytes(self) -> int:
        """Size of all its safetensors files in bytes."""
        return sum(file.size for file in self.files)

    def layer_of(self, name: str) -> int | None:
        """Tell which decoder layer a tensor or module belongs to; None if outside the layers."""
        prefix = f"{self.layer_prefix}."
        if not name.startswith(prefix):
            return None
        number = name[len(prefix) :].split(".", 1)[0]
        # Some models keep extra prediction layers behind the declared ones; those are no decoder
        # layers of the stack.
        return int(number) if number.isdecimal() and int(number) < self.layers else None

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor.

        Raises:
            LabkitError: no tensor of that name, or one that is quantised.
        """
        if name not in self.tensors:
            raise LabkitError(f"{shown(self.name)} has no tensor {shown(name)!r}")
        return self.tensors[name].read()

    def quantisation(self) -> str | None:
        """Name how the model is quantised; None if it is stored in floating-point numbers."""
        for config in (self.config, *(self.config.get(key) for key in LANGUAGE_CONFIGS)):
            if isinstance(config, dict) and config.get("quantization_config"):
                method = config["quantization_config"]
                return str(method.get("quant_method", "an unnamed method"))
        return None

    def __repr__(self) -> str:
        sizes = sorted({FLOATS.get(t.dtype, t.dtype) for t in self.tensors.values()})
        return (
            f"Checkpoint {shown(self.name)}: {self.layers} layers, {len(self.tensors)} tensors, "
            f"{self.nbytes / 1e9:.2f} GB, {', '.join(sizes)}"
        )


def _tensor_files(folder: Path) -> list[TensorFile]:
    index_path = folder / INDEX
    if index_path.exists():
        return _indexed_files(folder, index_path)
    if (folder / SINGLE).exists():
        return [open_tensor_file(folder / SINGLE)]
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if len(others) == 1:
        return [open_tensor_file(folder / others[0])]
    found = shown(", ".join(others) or "none")
    raise LabkitError(
        f"{shown(folder)} holds neither {INDEX} nor {SINGLE} (safetensors files found: {found}); "
        "name the folder of a model in safetensors format"
    )


def _indexed_files(folder: Path, index_path: Path) -> list[TensorFile]:
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise LabkitError(f"{shown(index_path)} has no weight_map; get the file again")
    listed: dict[str, set[str]] = defaultdict(set)
    for tensor, file_name in weight_map.items():
        if not isinstance(file_name, str) or Path(file_name).name != file_name:
            raise LabkitError(
                f"{shown(index_path)} puts tensor {shown(tensor)!r} into {shown(file_name)!r}; "
                "expected the name of a file in the same folder"
            )
        listed[file_name].add(tensor)
    missing = [name for name in sorted(listed) if not (folder / name).is_file()]
    if missing:
        raise LabkitError(
            f"{shown(index_path)} names {shown(missing[0])!r}, which is not in the folder "
            f"({len(missing)} of {len(listed)} files are missing); download what is missing"
        )
    files = []
    for file_name in sorted(listed):
        file = open_tensor_file(folder / file_name)
        difference = listed[file_name] ^ {tensor.name for tensor in file.tensors}
        if difference:
            raise LabkitError(
                f"{shown(index_path)} and {shown(file_name)!r} do not hold the same tensors: "
                f"{shown(min(difference))!r} stands in only one of them; get both files again"
            )
        files.append(file)
    return files


def _declared_layers(config: dict[str, Any], folder: Path) -> int:
    # A vision-language model's top level may count the vision tower's layers, so the language
    # model's own part is asked first.
    for part in (*(config.get(key) for key in LANGUAGE_CONFIGS), config):
        if isinstance(part, dict):
            for key in LAYER_COUNTS:
                if type(part.get(key)) is int and part[key] > 0:
                    return int(part[key])
    raise LabkitError(
        f"{shown(folder / 'config.json')} does not say how many layers the model has; expected one "
        f"of {', '.join(LAYER_COUNTS)}"
    )


def _find_layers(
    config: dict[str, Any], tensors: dict[str, StoredTensor], folder: Path
) -> tuple[str, int]:
    """Find the numbered group of modules that is the stack of decoder layers.

    Every first number in a tensor's name counts the members of a group: `model.layers`, say. The
    stack is the group that has all of the config's layers; the largest in bytes, if several do.
    """
    declared = _declared_layers(config, folder)
    members: dict[str, set[int]] = defaultdict(set)
    size: dict[str, int] = defaultdict(int)
    for name, tensor in tensors.items():
        parts = name.split(".")
        position = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
        if position is not None and len(parts[position]) <= 6:
            prefix = ".".join(parts[:position])
            members[prefix].add(int(parts[position]))
            size[prefix] += tensor.nbytes
    whole = [prefix for prefix, found in members.items() if found >= set(range(declared))]
    if not whole:
        largest = max(size, key=lambda prefix: size[prefix], default=None)
        found = (
            "no numbered layers"
            if largest is None
            else (f"{len(members[largest])} under {shown(largest)!r}")
        )
        raise LabkitError(
            f"{shown(folder / 'config.json')} says {declared} layers, but the tensors' names show "
            f"{found}; the folder is incomplete or its config belongs to another model"
        )
    # A vision tower has layers too, and seldom as many: an exact count says more than the size.
    exact = [prefix for prefix in whole if len(members[prefix]) == declared]
    return max(exact or whole, key=lambda prefix: size[prefix]), declared
