"""An adapter's folder (a LoRA on disk), opened lazily: its config, and its module's deltas."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import regex

from labkit.errors import LabkitError, shown
from labkit.reference import Located, locate, read_json
from labkit.tensor_file import StoredTensor, TensorFile, open_tensor_file

if TYPE_CHECKING:
    from labkit.delta import LowRank

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What PEFT puts before the names of the base model's modules."""
DOWNLOADS = (CONFIG, WEIGHTS, "adapter_model.bin", "tokenizer*", "special_tokens_map.json",
             "added_tokens.json", "vocab.json", "merges.txt", "chat_template*")  # fmt: skip
LONGEST_MATCH_SECONDS = 2.0
"""A pattern of a config that takes longer on one name is refused: some never end."""

# Fields of PEFT's LoraConfig that say how to train or where to look, and change no merge.
HARMLESS = frozenset(
    "peft_type task_type auto_mapping peft_version base_model_name_or_path revision inference_mode "
    "r lora_alpha lora_dropout target_modules exclude_modules fan_in_fan_out bias use_rslora "
    "layers_to_transform layers_pattern rank_pattern alpha_pattern runtime_config "
    "megatron_config megatron_core qalora_group_size modules_to_save init_lora_weights "
    "loftq_config eva_config enable_lora merge_weights ensure_weight_tying".split()
)
# Kinds of adapter that PEFT knows, by the field that asks for them, and that are refused so far.
REFUSED_FIELDS = {
    "use_dora": "DoRA",
    "modules_to_save": "modules trained whole (modules_to_save)",
    "lora_bias": "a bias on the LoRA's second factor (lora_bias)",
    "target_parameters": "LoRA on bare parameters (target_parameters)",
    "trainable_token_indices": "trained token rows (trainable_token_indices)",
    "layer_replication": "copied layers (layer_replication)",
    "alora_invocation_tokens": "activated LoRA (alora_invocation_tokens)",
    "use_qalora": "quantisation-aware LoRA (use_qalora)",
    "corda_config": "CorDA", "lora_ga_config": "LoRA-GA", "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA", "use_bdlora": "BD-LoRA", "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
}  # fmt: skip
# Initialisations that subtract something from the base's weights before training.
BASE_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")
SAID_BY_TENSORS = {
    "lora_magnitude_vector": "DoRA (lora_magnitude_vector)",
    "lora_embedding_A": "LoRA on an embedding (lora_embedding_A)",
    "lora_embedding_B": "LoRA on an embedding (lora_embedding_B)",
    "modules_to_save": "modules trained whole (modules_to_save)",
    "token_adapter": "trained token rows (token_adapter)",
}


@dataclass(frozen=True)
class LoraModule:
    """One module that a LoRA changes, as it lies in the adapter's file.

    Attributes:
        name: the module's name in the base model: `model.layers.0.self_attn.q_proj`.
        a: the factor `A`, of shape r × in.
        b: the factor `B`, of shape out × r.
        scaling: `s` in `ΔW = s·B·A`: alpha / r, or alpha / √r for rsLoRA.
    """

    name: str
    a: StoredTensor
    b: StoredTensor
    scaling: float

    @property
    def rank(self) -> int:
        """The rank r of its factors."""
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of `ΔW`: out × in."""
        return self.b.shape[0], self.a.shape[1]

    @property
    def tensors(self) -> tuple[StoredTensor, StoredTensor]:
        """Its tensors in the file."""
        return self.a, self.b

    def delta(self) -> LowRank:
        """Read the factors: `ΔW = s·B·A` in float64, of shape out × in, never multiplied out."""
        from labkit.delta import LowRank

        return LowRank(self.b.read().double() * self.scaling, self.a.read().double())


class Adapter:
    """A PEFT LoRA on disk. Opening one reads its config and its file's header only.

    Attributes:
        config: its `adapter_config.json`.
        file: its safetensors file.
        modules: name of the base's module -> its factors and scaling.
        other_tensors: tensors of the file that are no LoRA factor.
    """

    def __init__(self, reference: str | Path) -> None:
        """Open a folder or a hub id (`owner/name[@revision][:subfolder]`).

        Raises:
            LabkitError: nothing there, damaged files, a kind of adapter that labkit does not merge,
                or factors that do not fit each other or the config.
        """
        self._located: Located = locate(reference, "adapter", DOWNLOADS)
        self.config: dict[str, Any] = read_json(self.folder / CONFIG)
        self._refuse_other_kinds()
        self.file: TensorFile = _open_weights(self.folder)
        pairs, self.other_tensors = _pair_factors(self.file)
        self.modules: dict[str, LoraModule] = {
            name: self._module(name, pair) for name, pair in pairs.items()
        }
        if not self.modules:
            raise LabkitError(
                f"{shown(self.file.path)} holds no LoRA factors (lora_A, lora_B) among its "
                f"{len(self.file.tensors)} tensors; name the folder of a LoRA adapter"
            )

    @property
    def folder(self) -> Path:
        """Where the files are on this machine."""
        return self._located.folder

    @property
    def reference(self) -> str:
        """The folder or hub id it was opened by."""
        return self._located.reference

    @property
    def repository(self) -> str | None:
        """The hub id without revision; None for a local folder."""
        return self._located.repository

    @property
    def revision(self) -> str | None:
        """The commit of the hub's repository; None for a local folder."""
        return self._located.revision

    @property
    def name(self) -> str:
        """A short name to show: the folder's, or the hub repository's."""
        return self._located.name

    @property
    def rank(self) -> int:
        """The largest rank of its modules."""
        return max(module.rank for module in self.modules.values())

    def delta(self, module: str) -> LowRank:
        """Read what the adapter adds to one module: `ΔW = s·B·A`, as factors in float64.

        Raises:
            LabkitError: the adapter does not change a module of that name.
        """
        if module not in self.modules:
            raise LabkitError(f"{shown(self.name)} does not change a module {shown(module)!r}")
        return self.modules[module].delta()

    def targets(self, module: str) -> bool:
        """Tell whether the config's `target_modules` and its companions select a module.

        PEFT loads only the factors of modules that they select
        (`peft.tuners.tuners_utils.check_target_module_exists`).
        """
        excluded = self.config.get("exclude_modules")
        if excluded and _selects(excluded, module):
            return False
        target = self.config.get("target_modules")
        if isinstance(target, str):
            # "all-linear" leaves out the output head, whatever its name; a head with factors of
            # its own was therefore named in another way.
            return target.lower() == "all-linear" or _selects(target, module)
        if not _selects(target or [], module):
            return False
        return module in (target or []) or self._transforms_layer(module)

    def _transforms_layer(self, module: str) -> bool:
        layers = self.config.get("layers_to_transform")
        if layers is None or layers == []:
            return True
        patterns = self.config.get("layers_pattern") or [r"[^.]*"]
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            # The first number in a name is the layer's; later ones count experts.
            match = _match(rf"(?:^|.*?\.){pattern}\.(?P<layer>\d+)\.", module, whole=False)
            if match:
                chosen = [layers] if isinstance(layers, int) else layers
                return int(match["layer"]) in chosen
        return False

    def _module(self, name: str, pair: dict[str, StoredTensor]) -> LoraModule:
        where = f"module {shown(name)!r} of {shown(self.name)}"
        if len(pair) != 2:
            raise LabkitError(
                f"{where} has only the factor lora_{next(iter(pair))}; both lora_A and lora_B are "
                "needed; get the adapter's file again"
            )
        a, b = pair["A"], pair["B"]
        rank = self._pattern("rank_pattern", name, "r")
        alpha = self._pattern("alpha_pattern", name, "lora_alpha")
        if type(rank) is not int or rank < 1:
            raise LabkitError(f"{where} has rank {shown(rank)} in {CONFIG}; expected 1 or more")
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
            raise LabkitError(f"{where} has alpha {shown(alpha)!r} in {CONFIG}; expected a number")
        if not math.isfinite(alpha):
            raise LabkitError(f"{where} has alpha {alpha} in {CONFIG}; expected a finite number")
        if len(a.shape) != 2 or len(b.shape) != 2:
            raise LabkitError(
                f"{where} has factors of shape {a.shape} and {b.shape}; this kind of layer is not "
                "merged yet, only linear modules are"
            )
        if a.shape[0] != rank or b.shape[1] != rank:
            raise LabkitError(
                f"{where} has factors A {a.shape} and B {b.shape}, but its rank in {CONFIG} is "
                f"{rank}; expected A {rank} × in and B out × {rank}; the config belongs to another "
                "adapter, or its rank_pattern is incomplete"
            )
        divisor = math.sqrt(rank) if self.config.get("use_rslora") else rank
        return LoraModule(name, a, b, alpha / divisor)

    def _pattern(self, field: str, module: str, default: str) -> Any:
        """Read `rank_pattern` or `alpha_pattern` as `peft.utils.other.get_pattern_key` does."""
        patterns = self.config.get(field) or {}
        if not isinstance(patterns, dict):
            raise LabkitError(f"{field} in {CONFIG} of {shown(self.name)} is not an object")
        for pattern, value in patterns.items():
            if _match(rf"(.*\.)?({pattern})$", module, whole=False):
                return value
        return self.config.get(default, {"r": 8, "lora_alpha": 8}[default])

    def _refuse_other_kinds(self) -> None:
        name = f"the adapter {shown(self.name)}"
        kind = self.config.get("peft_type")
        if kind != "LORA":
            raise LabkitError(
                f"{name} is of the kind {shown(kind)!r}; labkit merges LORA adapters, since a "
                "layer weight has a meaning for those"
            )
        for field, what in REFUSED_FIELDS.items():
            if self.config.get(field):
                raise LabkitError(f"{name} uses {what}, which labkit does not merge yet")
        if self.config.get("bias", "none") != "none":
            raise LabkitError(
                f"{name} trained biases (bias={shown(self.config['bias'])!r}), which labkit does "
                "not merge yet"
            )
        start = str(self.config.get("init_lora_weights", "")).lower()
        if start.startswith(BASE_CHANGING):
            raise LabkitError(
                f"{name} was initialised with {shown(start)!r}, which changes the base model; "
                "convert it to a plain LoRA with PEFT "
                "(save_pretrained(..., path_initial_model_for_weight_conversion=...))"
            )
        for field, value in self.config.items():
            if field not in HARMLESS and field not in REFUSED_FIELDS and value:
                raise LabkitError(
                    f"{name} has the unknown field {shown(field)!r} = {shown(value)} in {CONFIG}, "
                    "which may change what its deltas mean; remove the field if it does not"
                )

    def __repr__(self) -> str:
        ranks = sorted({module.rank for module in self.modules.values()})
        rank = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
        return f"Adapter {shown(self.name)}: LoRA of rank {rank} on {len(self.modules)} modules"


def _open_weights(folder: Path) -> TensorFile:
    if (folder / WEIGHTS).exists():
        return open_tensor_file(folder / WEIGHTS)
    if (folder / "adapter_model.bin").exists():
        raise LabkitError(
            f"{shown(folder)} holds adapter_model.bin, a pickle, which can run code when it is "
            f"opened; convert it to {WEIGHTS} first"
        )
    raise LabkitError(f"{shown(folder)} holds no {WEIGHTS}; name the folder of a LoRA adapter")


def _pair_factors(
    file: TensorFile,
) -> tuple[dict[str, dict[str, StoredTensor]], tuple[StoredTensor, ...]]:
    """Sort an adapter's tensors into pairs of factors by module, and others."""
    pairs: dict[str, dict[str, StoredTensor]] = {}
    others = []
    for tensor in file.tensors:
        name = tensor.name.removeprefix(PREFIX)
        for mark, what in SAID_BY_TENSORS.items():
            if mark in name.split("."):
                raise LabkitError(
                    f"tensor {shown(tensor.name)!r} of {shown(file.path)} belongs to {what}, which "
                    "labkit does not merge yet"
                )
        # Adapters saved from memory carry the adapter's name in the key: lora_A.default.weight
        match = regex.fullmatch(r"(.+)\.lora_([AB])(?:\.[^.]+)?\.weight", name)
        if not match:
            others.append(tensor)
            continue
        pair = pairs.setdefault(match[1], {})
        if match[2] in pair:
            raise LabkitError(
                f"{shown(file.path)} holds two tensors lora_{match[2]} for module "
                f"{shown(match[1])!r}; it seems to hold several adapters; save one by itself"
            )
        pair[match[2]] = tensor
    return pairs, tuple(others)


def _selects(targets: str | Iterable[str], module: str) -> bool:
    if isinstance(targets, str):
        return _match(targets, module, whole=True) is not None
    return any(module == target or module.endswith(f".{target}") for target in targets)


def _match(pattern: str, name: str, whole: bool) -> regex.Match[str] | None:
    """Match a pattern from a config against a name, with an end to it."""
    try:
        match = regex.fullmatch if whole else regex.match
        return match(pattern, name, timeout=LONGEST_MATCH_SECONDS)
    except regex.error as error:
        raise LabkitError(
            f"{CONFIG} holds the pattern {shown(pattern)!r}, which is no regular expression: "
            f"{shown(error)}"
        ) from error
    except TimeoutError:
        raise LabkitError(
            f"{CONFIG} holds the pattern {shown(pattern)!r}, which takes more than "
            f"{LONGEST_MATCH_SECONDS} s to match {shown(name)!r}; write a simpler pattern"
        ) from None
