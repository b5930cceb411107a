"""An adapter's folder (a LoRA on disk), opened lazily: its config, and what it changes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from labkit.deltas.low_rank import LowRank
from labkit.errors import LabkitError, shown, spelled
from labkit.files.references import Located, locate
from labkit.files.small_files import read_json, require_inside, require_same_json
from labkit.files.tensor_file import TensorFile, open_tensor_file
from labkit.models.adapter_config import CONFIG, NOT_NAMED, UNUSUAL, AdapterConfig, read_config
from labkit.models.adapter_file import read_parts
from labkit.models.checkpoint import Checkpoint
from labkit.models.kinds.lora import LoraModule
from labkit.models.kinds.part import Part
from labkit.models.model_files import (
    ADAPTER_SETS,
    ADAPTER_WEIGHTS,
    EXTRA_WEIGHTS,
    PICKLED_ADAPTER,
    adapter_downloads,
)
from labkit.models.source import Source

TIED = "the head is tied to the embedding, whose change it gets (ensure_weight_tying)"
COMPUTED = ("inv_freq", "position_ids")
"""Tensors that whole states hold and models compute by themselves."""
HEADS_OF_TASKS = ("score", "classifier", "v_head", "qa_outputs")
"""The heads of reward models, classifiers, TRL's value head, and question answering."""


class Adapter(Source):
    """A LoRA on disk. Opening one reads its config and its file's header only.

    Attributes:
        config: its `adapter_config.json`.
        file: its file of tensors.
        parts: everything it changes, in the order of the file.
        modules: name of the base's module -> its LoRA's factors and scaling, of linear modules and
            embeddings; of DoRA those of the direction.
    """

    kind = "adapter"

    def __init__(self, reference: str | Path) -> None:
        """Open a folder or a hub id (`owner/name[@revision][:subfolder]`).

        Raises:
            LabkitError: nothing there, damaged files, a kind of adapter that labkit does not merge,
                or factors that do not fit each other or the config.
        """
        self._located: Located = locate(reference, "adapter", adapter_downloads)
        if not (self.folder / CONFIG).is_file():
            raise LabkitError(_no_config(self.folder))
        require_inside(self.folder / CONFIG)
        self.config: dict[str, Any] = read_json(self.folder / CONFIG)
        self._checked: AdapterConfig = read_config(self.config, self.name)
        self.file: TensorFile = _open_weights(self.folder)
        self._extra = tuple(_open_extra(self.folder))
        self.parts: tuple[Part, ...] = tuple(
            part for file in (self.file, *self._extra) for part in read_parts(file, self._checked)
        )
        self._gives_head: WeakKeyDictionary[Checkpoint, bool] = WeakKeyDictionary()
        self.modules: dict[str, LoraModule] = {
            part.name: part.factors for part in self.parts if isinstance(part.factors, LoraModule)
        }
        if not any(part.known_by_key for part in self.parts):
            raise LabkitError(
                f"{shown(self.file.path)} holds no LoRA factors (lora_A, lora_B) among its "
                f"{len(self.file.tensors)} tensors; name the folder of a LoRA adapter"
            )

    @property
    def nbytes(self) -> int:
        """Size of its tensors' files in bytes."""
        return sum(file.size for file in (self.file, *self._extra))

    @property
    def read_files(self) -> tuple[Path, ...]:
        """Its tensors' files and its config."""
        return self.file.path, *(file.path for file in self._extra), self.folder / CONFIG

    def require_unchanged(self) -> None:
        """Check that config and weights are still those that were opened.

        Raises:
            LabkitError: one was changed, replaced or removed since.
        """
        require_same_json(self.folder / CONFIG, self.config)
        for file in (self.file, *self._extra):
            file.require_unchanged()

    def why_skipped(self, part: Part, base: Checkpoint | None) -> str | None:
        """PEFT loads factors only where the config selects their module, and so does a merge."""
        if part.parameter in COMPUTED:
            return "models compute it by themselves"
        if base is not None and part.tensors[0].file != self.file.path:
            found = part.matches(base)
            if isinstance(found, str):
                return f"{found}; it comes from {part.tensors[0].file.name}"
        if base is not None and self.gives_head(base) and base.is_head(part.name):
            return TIED
        return self._not_selected(part, base)

    def _not_selected(self, part: Part, base: Checkpoint | None) -> str | None:
        """Why the config does not select a part; None if it does, or need not."""
        if not part.needs_selection:
            return None
        return self._checked.why_left_out(part.name, _type_of(base))

    def wanted_base(self, base: Checkpoint) -> str:
        """Name the kind of model that the adapter's head belongs to, where it says so."""
        task = str(self.config.get("task_type"))
        heads = [part.name for part in self.parts if part.name.split(".")[0] in HEADS_OF_TASKS]
        if heads and any(isinstance(part.matches(base), str) for part in self.parts):
            return (
                f"the adapter was trained on a model with the head {shown(heads[0])!r} (task type "
                f"{shown(task)}): name such a model as the base, or leave the head out "
                f"({spelled('rest=0', '--rest 0')})"
            )
        return "the adapter was made for another model"

    def gives_head(self, base: Checkpoint) -> bool:
        """With `ensure_weight_tying` the embedding's change counts for both, and for nothing else.

        PEFT then trains and merges one tensor for both uses.
        """
        if not (self.config.get("ensure_weight_tying") and base.tied):
            return False
        if base not in self._gives_head:  # it is asked for each part
            self._gives_head[base] = any(
                base.find(f"{part.name}.weight") is base.embedding for part in self.parts
            )
        return self._gives_head[base]

    def require_selection(self, base: Checkpoint | None) -> None:
        """Check that the config selects some of the factors in the file.

        Raises:
            LabkitError: it selects none of them, so that nothing would be merged.
        """
        parts = [part for part in self.parts if part.needs_selection]
        reasons = {self._not_selected(part, base) for part in parts}
        if not parts or None in reasons:
            return
        others = sorted(one for one in reasons if one and one not in (NOT_NAMED, UNUSUAL))
        if others:
            raise LabkitError(
                f"{CONFIG} of {shown(self.name)} selects none of the {len(parts)} modules in its "
                f"file (of {shown(parts[0].name)!r} {others[0]}); correct {CONFIG}"
            )
        held = sorted({part.name.rsplit(".", 1)[-1] for part in parts})
        asked = self.config.get("target_modules")
        raise LabkitError(
            f"target_modules of {shown(self.name)} selects none of the {len(parts)} modules in its "
            f"file: {CONFIG} asks for {shown(asked)}, and the file holds {shown(', '.join(held))}; "
            f"correct {CONFIG}"
        )

    @property
    def rank(self) -> int:
        """The largest rank of its modules."""
        return max((part.rank for part in self.parts), default=0)

    @property
    def plain(self) -> bool:
        """Whether all it does is add `s·B·A` to linear modules."""
        return all(part.plain for part in self.parts)

    def require_plain(self, what: str) -> None:
        """Check that all the adapter does is add `s·B·A` to linear modules.

        Raises:
            LabkitError: it does something else, which `what` (such as "bake") cannot carry.
        """
        for part in self.parts:
            if not part.plain:
                raise LabkitError(
                    f"{what} works on plain LoRA only, and {shown(self.name)} holds "
                    f"{shown(part.tensors[-1].name)!r}; merge it instead "
                    f"({spelled('lk.plan', 'labkit merge')})"
                )

    def delta(self, module: str) -> LowRank:
        """Read what the adapter adds to one module: `ΔW = s·B·A`, as factors in float64.

        Raises:
            LabkitError: the adapter does not change a module of that name.
        """
        if module not in self.modules:
            raise LabkitError(f"{shown(self.name)} does not change a module {shown(module)!r}")
        return self.modules[module].product()

    def targets(self, module: str, base: Checkpoint | None = None) -> bool:
        """Tell whether the config's `target_modules` and its companions select a module.

        Args:
            module: the module's name in the base.
            base: the base, for what PEFT takes where the config names no modules.
        """
        return self._checked.targets(module, _type_of(base))

    def asked_as(self, module: str) -> str:
        """The name by which PEFT asks `rank_pattern` and `alpha_pattern` for a module."""
        return self._checked.asked_as(module)

    def notes(self, base: Checkpoint) -> Iterator[str]:
        """An alpha of 0, another base than it was trained on, and layers that it leaves out."""
        name = shown(self.name)
        if self.plain and all(module.scaling == 0 for module in self.modules.values()):
            yield f"{name} has alpha 0: it changes nothing at any weight"
        claimed: Any = self.config.get("base_model_name_or_path")
        if isinstance(claimed, str) and claimed and base.repository:
            trained_on = claimed.rstrip("/").split("/")[-1]
            if trained_on.lower() != base.repository.split("/")[-1].lower():
                yield f"{name} says it was trained on {shown(claimed)}, not on {shown(base.name)}"
        for file in self._extra:
            left = sum(
                part.tensors[0].file == file.path and isinstance(part.matches(base), str)
                for part in self.parts
            )
            yield f"{name}: {file.path.name} is merged too" + (
                f", but for {left} tensors that the base has no place for" if left else ""
            )
        skipped = {part.name for part in self.parts if self._not_selected(part, base)}
        lost: dict[str, list[str]] = defaultdict(list)
        for part in self.parts:
            reason = self._not_selected(part, base)
            if reason and self.why_skipped(part, base) == reason and part.changes_something():
                lost[reason].append(shown(part.name))
        for reason, names in lost.items():
            some = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
            yield (
                f"{name} holds a change of {len(names)} modules that is left out, as by PEFT, "
                f"since in {CONFIG} {reason}: {some}"
            )
        if self.config.get("layers_to_transform"):
            return
        layers_of: dict[str, set[int]] = defaultdict(set)
        for module in self.modules.keys() - skipped:
            layer = base.layer_of(module)
            if layer is not None:
                layers_of[module.rsplit(".", 1)[-1]].add(layer)
        for kind, layers in sorted(layers_of.items()):
            if len(layers) < base.layers:
                yield f"{name} changes {kind} in {len(layers)} of {base.layers} layers only"

    def __repr__(self) -> str:
        ranks = sorted({module.rank for module in self.modules.values()}) or [self.rank]
        rank = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
        more = len(self.parts) - len(self.modules)
        others = f", and {more} other changes" if more else ""
        modules = f"{len(self.modules)} modules{others}"
        return f"Adapter {shown(self.name)}: LoRA of rank {rank} on {modules}"


def _type_of(base: Checkpoint | None) -> str | None:
    model_type = None if base is None else base.config.get("model_type")
    return model_type if isinstance(model_type, str) else None


def _no_config(folder: Path) -> str:
    """What to say of a folder that holds no adapter's config."""
    inside = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))
    if inside:
        return (
            f"{shown(folder)} holds no {CONFIG}, but {len(inside)} of its folders do: name one of "
            f"them, {shown(', '.join(inside))} (such as {shown(folder / inside[0])})"
        )
    if (folder / "config.json").is_file():
        return (
            f"{shown(folder)} holds a model (config.json) and no adapter; the two may be swapped: "
            "name the base first and the adapter second"
        )
    return f"{shown(folder)} holds no {CONFIG}; name the folder of a LoRA adapter"


def _open_extra(folder: Path) -> Iterator[TensorFile]:
    for name in EXTRA_WEIGHTS:
        if (folder / name).is_file():
            from labkit.files.pickled import open_pickled

            require_inside(folder / name)
            yield open_pickled(folder / name)


def _open_weights(folder: Path) -> TensorFile:
    for name in ADAPTER_SETS:
        if (folder / name).exists():
            require_inside(folder / name)
            if name != PICKLED_ADAPTER:
                return open_tensor_file(folder / name)
            from labkit.files.pickled import open_pickled

            return open_pickled(folder / name)
    raise LabkitError(
        f"{shown(folder)} holds no {ADAPTER_WEIGHTS}; name the folder of a LoRA adapter"
    )
