"""A base model's folder, opened lazily: its config, and where each tensor lies."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.errors import LabkitError, shown
from labkit.files.references import Located, Opened, locate
from labkit.files.small_files import read_json, require_inside, require_same_json
from labkit.files.tensor_file import FLOATS, StoredTensor, TensorFile, open_tensor_file
from labkit.models.model_files import (
    INDEX,
    PICKLED_INDEX,
    SETS,
    SINGLE,
    model_downloads,
)
from labkit.models.names import STACKS, canonical, split_layer, without_wrappers

if TYPE_CHECKING:
    import torch

EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings")
"""What architectures call their input embedding: Llama and most, GPT-2, BLOOM and Falcon, NeoX."""
HEADS = ("lm_head", "output")
"""What they call their output head, in canonical names."""
PACKED = (".qweight", ".weight_packed", ".qzeros", ".weight_scale_inv", ".absmax")
"""The ends of names that GPTQ, AWQ, compressed-tensors, FP8 and bitsandbytes give their tensors."""
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
"""What configs call the number of decoder layers: Llama and most others, GPT-2, GPT-Neo, MPT."""
LANGUAGE_CONFIGS = ("text_config", "llm_config", "language_config")
"""Where the config of a vision-language model keeps its language model's part."""


class Checkpoint(Opened):
    """A base model on disk. Opening one reads JSON and headers only, never a tensor.

    Attributes:
        config: the model's `config.json`.
        files: the safetensors files, in the order of their names.
        tensors: name -> where it lies, in the order of the files and of the bytes in them.
        notes: what is worth knowing of the folder.
        layers: the number of decoder layers.
        layer_prefix: what comes before the layer's number in a tensor's name: `model.layers`.
    """

    def __init__(self, reference: str | Path) -> None:
        """Open a folder or a hub id (`owner/name[@revision][:subfolder]`).

        Raises:
            LabkitError: nothing there, files that are missing or damaged, or a config whose number
                of layers the tensors' names do not show.
        """
        self._located: Located = locate(reference, "base model", model_downloads)
        if not (self.folder / "config.json").is_file():
            raise LabkitError(_no_config(self.folder))
        self.config: dict[str, Any] = read_json(self.folder / "config.json")
        files, self.notes = _tensor_files(self.folder)
        self.files: tuple[TensorFile, ...] = tuple(files)
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

    def require_unchanged(self) -> None:
        """Check that config and tensors are still those that were opened.

        Raises:
            LabkitError: one was changed, replaced or removed since.
        """
        require_same_json(self.folder / "config.json", self.config)
        for file in self.files:
            file.require_unchanged()

    @cached_property
    def nbytes(self) -> int:
        """Size of all its safetensors files in bytes."""
        return sum(file.size for file in self.files)

    def layer_of(self, name: str) -> int | None:
        """Tell which decoder layer a tensor or module belongs to; None if outside the layers."""
        prefix, number, _ = split_layer(name)
        if number is None:
            return None
        wrapped = prefix != self.layer_prefix
        if wrapped and without_wrappers(prefix) != without_wrappers(self.layer_prefix):
            return None
        # Some models keep extra prediction layers behind the declared ones; those are no decoder
        # layers of the stack.
        return number if number < self.layers else None

    @cached_property
    def embedding(self) -> StoredTensor | None:
        """The input embedding's tensor."""
        return self._named(EMBEDDINGS)

    @cached_property
    def head(self) -> StoredTensor | None:
        """The output head's tensor; where the embedding serves as head, that under a head's name.

        None for a model that has neither.
        """
        found = self._named(HEADS)
        if found is not None or self.embedding is None:
            return found
        inside = self.embedding.name.startswith("language_model.")
        name = "language_model.lm_head.weight" if inside else "lm_head.weight"
        return replace(self.embedding, name=name)

    @cached_property
    def tied(self) -> bool:
        """Whether one tensor is both embedding and head."""
        if self.embedding is None or self.head is None:
            return False
        parts = (*(self.config.get(key) for key in LANGUAGE_CONFIGS), self.config)
        said = [part.get("tie_word_embeddings") for part in parts if isinstance(part, dict)]
        return self.head.name not in self.tensors or True in said

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """The names of the tensors that have one row for each token."""
        found = (self.embedding, self.head)
        return tuple(dict.fromkeys(tensor.name for tensor in found if tensor is not None))

    @cached_property
    def _by_canonical_name(self) -> dict[str, list[StoredTensor]]:
        found: dict[str, list[StoredTensor]] = defaultdict(list)
        for name, tensor in self.tensors.items():
            found[canonical(name)].append(tensor)
        return found

    def find(self, name: str) -> StoredTensor | str:
        """Find a tensor by its name, in whichever spelling; or say why there is none."""
        if name in self.tensors:
            return self.tensors[name]
        candidates = self._by_canonical_name.get(canonical(name), [])
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            return f"the base has {len(candidates)} tensors of that name"
        return "the base has no module of that name"

    def is_outside(self, module: str) -> bool:
        """Whether a module's name is one that no decoder layer has."""
        return split_layer(module)[1] is None

    def is_head(self, module: str) -> bool:
        """Whether a module's name is the one that most models give their output head."""
        return canonical(module) == "lm_head"

    def _named(self, modules: tuple[str, ...]) -> StoredTensor | None:
        wanted = {f"{module}.weight" for module in modules}
        for name, tensor in self.tensors.items():
            if canonical(name) in wanted and len(tensor.shape) == 2:
                return tensor
        return None

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor, in its own dtype.

        Raises:
            LabkitError: no tensor of that name, or one that is quantised.
        """
        if name not in self.tensors:
            raise LabkitError(f"{shown(self.name)} has no tensor {shown(name)!r}")
        import torch

        tensor = self.tensors[name]
        dtype = getattr(torch, FLOATS[tensor.float_dtype])
        if not tensor.nbytes:
            return torch.empty(tensor.shape, dtype=dtype)
        return torch.frombuffer(tensor.read_bytes(), dtype=dtype).reshape(tensor.shape)

    def require_unquantised(self) -> None:
        """Check that the model is stored in floating-point numbers.

        Raises:
            LabkitError: it is quantised, or its config says so.
        """
        packed = next((name for name in self.tensors if name.endswith(PACKED)), None)
        configs = [
            config.get("quantization_config") for config in (self.config, self.language_config)
        ]
        said: Any = next(filter(None, configs), None)
        if packed is None and said is None:
            return
        remark = ""
        if said is None:
            method = "by the names of its tensors"
            remark = f" {shown(packed)!r} is packed, though config.json is silent;"
        else:
            named = said.get("quant_method") if isinstance(said, dict) else None
            method = shown(named or "an unnamed method")
            if packed is None and all(tensor.dtype in FLOATS for tensor in self.tensors.values()):
                remark = (
                    " so says config.json, though its tensors are plain numbers: if they are the "
                    "unquantised ones, take quantization_config out of it;"
                )
        raise LabkitError(
            f"the base {shown(self.name)} is quantised ({method});{remark} a merge needs the "
            "unquantised model: name its original folder, and quantise the merged model afterwards"
        )

    @cached_property
    def language_config(self) -> dict[str, Any]:
        """The config of the language model: the model's own, or its part of a larger one's."""
        for key in LANGUAGE_CONFIGS:
            if isinstance(self.config.get(key), dict):
                return dict(self.config[key])
        return self.config

    def __repr__(self) -> str:
        sizes = sorted({FLOATS.get(t.dtype, t.dtype) for t in self.tensors.values()})
        return (
            f"Checkpoint {shown(self.name)}: {self.layers} layers, {len(self.tensors)} tensors, "
            f"{self.nbytes / 1e9:.2f} GB, {', '.join(sizes)}"
        )


def _no_config(folder: Path) -> str:
    """What to say of a folder that holds no model's config."""
    if (folder / "adapter_config.json").is_file():
        return (
            f"{shown(folder)} holds an adapter (adapter_config.json) and no base model; the two "
            "may be swapped: name the base first and the adapter second"
        )
    inside = sorted(path.parent.name for path in folder.glob("*/config.json"))
    if inside:
        return (
            f"{shown(folder)} holds no config.json, but its folder {shown(inside[0])!r} does; name "
            f"{shown(folder / inside[0])}"
        )
    return f"{shown(folder)} holds no config.json; name the folder of a model"


def _tensor_files(folder: Path) -> tuple[list[TensorFile], tuple[str, ...]]:
    """Open the files that transformers would load, and note the complete sets beside them.

    Its order is a whole safetensors file, safetensors by an index, then pickled files likewise
    (`transformers.modeling_utils._get_resolved_checkpoint_files`).
    """
    there = [name for name in SETS if (folder / name).exists()]
    if there:
        chosen, *others = there
        opened = (
            _indexed_files(folder, folder / chosen)
            if chosen in (INDEX, PICKLED_INDEX)
            else [_open(folder / chosen)]
        )
        notes = tuple(
            f"{shown(folder.resolve().name)} also holds {name}, which is not read: transformers "
            f"would load {chosen}"
            for name in others
        )
        return opened, notes
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if len(others) == 1:
        return [_open(folder / others[0])], ()
    if any(folder.glob("*.gguf")):
        raise LabkitError(
            f"{shown(folder)} holds a GGUF model, which is quantised or laid out for llama.cpp; "
            "name the folder of the original model, and convert the merged one afterwards"
        )
    found = shown(", ".join(others) or "none")
    raise LabkitError(
        f"{shown(folder)} holds neither {INDEX} nor {SINGLE} (safetensors files found: {found}); "
        "name the folder of a model in safetensors format"
    )


def _open(path: Path) -> TensorFile:
    require_inside(path)
    if path.suffix == ".bin":
        from labkit.files.pickled import open_pickled

        return open_pickled(path)
    return open_tensor_file(path)


def _indexed_files(folder: Path, index_path: Path) -> list[TensorFile]:
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise LabkitError(f"{shown(index_path)} has no weight_map; get the file again")
    suffix = ".bin" if index_path.name == PICKLED_INDEX else ".safetensors"
    listed: dict[str, set[str]] = defaultdict(set)
    for tensor, file_name in weight_map.items():
        if isinstance(file_name, str) and file_name in listed:
            listed[file_name].add(tensor)
            continue
        if (
            not isinstance(file_name, str)
            or Path(file_name).name != file_name
            or not file_name.endswith(suffix)
            or not file_name.isprintable()
        ):
            raise LabkitError(
                f"{shown(index_path)} puts tensor {shown(tensor)!r} into {shown(file_name)!r}; "
                f"expected the name of a {suffix} file in the same folder"
            )
        listed[file_name].add(tensor)
    missing = [name for name in sorted(listed) if not _is_file(folder / name)]
    if missing:
        raise LabkitError(
            f"{shown(index_path)} names {shown(missing[0])!r}, which is not in the folder "
            f"({len(missing)} of {len(listed)} files are missing); download what is missing"
        )
    files = []
    for file_name in sorted(listed):
        file = _open(folder / file_name)
        difference = listed[file_name] ^ {tensor.name for tensor in file.tensors}
        if difference:
            raise LabkitError(
                f"{shown(index_path)} and {shown(file_name)!r} do not hold the same tensors: "
                f"{shown(min(difference))!r} stands in only one of them; get both files again"
            )
        files.append(file)
    return files


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that the file system cannot have
        return False


def _declared_layers(config: dict[str, Any], folder: Path) -> int | None:
    """The number of layers that the config says; None where it says nothing of them."""
    # A vision-language model's top level may count the vision tower's layers, so the language
    # model's own part is asked first.
    parts = (*(config.get(key) for key in LANGUAGE_CONFIGS), config)
    said = [
        (key, part[key])
        for part in parts
        if isinstance(part, dict)
        for key in LAYER_COUNTS
        if key in part
    ]
    for _, count in said:
        if type(count) is int and count > 0:
            return int(count)
    if said:
        key, count = said[0]
        raise LabkitError(
            f"{shown(folder / 'config.json')} has {key} {shown(count)}; expected a number of "
            "layers, 1 or more"
        )
    return None


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
        prefix, number, _ = split_layer(name)
        if number is not None:
            members[prefix].add(number)
            size[prefix] += tensor.nbytes
    if declared is None:
        return _only_stack(members, folder)
    whole = [
        prefix
        for prefix, found in members.items()
        if len(found) >= declared and all(number in found for number in range(declared))
    ]
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
    # A vision tower can be larger than the language model, but its name says what it is; and an
    # exact count says more than the size.
    named = [prefix for prefix in whole if without_wrappers(prefix) in STACKS]
    exact = [prefix for prefix in named or whole if len(members[prefix]) == declared]
    return max(exact or named or whole, key=lambda prefix: size[prefix]), declared


def _only_stack(members: dict[str, set[int]], folder: Path) -> tuple[str, int]:
    """The stack of a model whose config counts no layers: the one that is complete and named so."""
    stacks = [
        prefix
        for prefix, found in members.items()
        if without_wrappers(prefix) in STACKS and found == set(range(len(found)))
    ]
    if len(stacks) != 1:
        raise LabkitError(
            f"{shown(folder / 'config.json')} does not say how many layers the model has; expected "
            f"one of {', '.join(LAYER_COUNTS)}"
        )
    return stacks[0], len(members[stacks[0]])
