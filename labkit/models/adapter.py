"""An adapter's folder (a LoRA on disk), opened lazily: its config, and what it changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from labkit.deltas.low_rank import LowRank
from labkit.errors import LabkitError, shown
from labkit.files.references import Located, locate
from labkit.files.small_files import read_json, require_same_json
from labkit.files.tensor_file import TensorFile, open_tensor_file
from labkit.models.adapter_config import CONFIG, AdapterConfig, read_config
from labkit.models.adapter_file import read_parts
from labkit.models.checkpoint import Checkpoint
from labkit.models.kinds.lora import LoraModule
from labkit.models.kinds.part import Part
from labkit.models.source import Source

WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
MLX_WEIGHTS = "adapters.safetensors"
DOWNLOADS = (CONFIG, WEIGHTS, PICKLED, MLX_WEIGHTS, "tokenizer*", "special_tokens_map.json",
             "added_tokens.json", "vocab.json", "merges.txt", "chat_template*",
             "README.md")  # fmt: skip


class Adapter(Source):
    """A LoRA on disk. Opening one reads its config and its file's header only.

    Attributes:
        config: its `adapter_config.json`.
        file: its file of tensors.
        parts: everything it changes, in the order of the file.
        modules: name of the base's module -> its LoRA's factors and scaling, of linear modules and
            embeddings; of DoRA those of the direction.
    """

    def __init__(self, reference: str | Path) -> None:
        """Open a folder or a hub id (`owner/name[@revision][:subfolder]`).

        Raises:
            LabkitError: nothing there, damaged files, a kind of adapter that labkit does not merge,
                or factors that do not fit each other or the config.
        """
        self._located: Located = locate(reference, "adapter", DOWNLOADS)
        self.config: dict[str, Any] = read_json(self.folder / CONFIG)
        self._checked: AdapterConfig = read_config(self.config, self.name)
        self.file: TensorFile = _open_weights(self.folder)
        self.parts: tuple[Part, ...] = read_parts(self.file, self._checked)
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
        """Size of its tensors' file in bytes."""
        return self.file.size

    @property
    def read_files(self) -> tuple[Path, ...]:
        """Its tensors' file and its config."""
        return self.file.path, self.folder / CONFIG

    def require_unchanged(self) -> None:
        """Check that config and weights are still those that were opened.

        Raises:
            LabkitError: one was changed, replaced or removed since.
        """
        require_same_json(self.folder / CONFIG, self.config)
        self.file.require_unchanged()

    def why_skipped(self, part: Part) -> str | None:
        """PEFT loads factors only where the config selects their module, and so does a merge."""
        if part.needs_selection and not self.targets(part.name):
            return "target_modules does not name it"
        return None

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
                    f"{shown(part.tensors[-1].name)!r}; merge it instead (labkit merge)"
                )

    def delta(self, module: str) -> LowRank:
        """Read what the adapter adds to one module: `ΔW = s·B·A`, as factors in float64.

        Raises:
            LabkitError: the adapter does not change a module of that name.
        """
        if module not in self.modules:
            raise LabkitError(f"{shown(self.name)} does not change a module {shown(module)!r}")
        return self.modules[module].product()

    def targets(self, module: str) -> bool:
        """Tell whether the config's `target_modules` and its companions select a module."""
        return self._checked.targets(module)

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
        if self.config.get("layers_to_transform"):
            return
        for kind in sorted({module.rsplit(".", 1)[-1] for module in self.modules}):
            layers = {
                base.layer_of(module)
                for module in self.modules
                if module.rsplit(".", 1)[-1] == kind
            } - {None}
            if layers and len(layers) < base.layers:
                yield f"{name} changes {kind} in {len(layers)} of {base.layers} layers only"

    def __repr__(self) -> str:
        ranks = sorted({module.rank for module in self.modules.values()}) or [self.rank]
        rank = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
        more = len(self.parts) - len(self.modules)
        others = f", and {more} other changes" if more else ""
        modules = f"{len(self.modules)} modules{others}"
        return f"Adapter {shown(self.name)}: LoRA of rank {rank} on {modules}"


def _open_weights(folder: Path) -> TensorFile:
    for name in (WEIGHTS, MLX_WEIGHTS):
        if (folder / name).exists():
            return open_tensor_file(folder / name)
    if (folder / PICKLED).exists():
        from labkit.files.pickled import open_pickled

        return open_pickled(folder / PICKLED)
    raise LabkitError(f"{shown(folder)} holds no {WEIGHTS}; name the folder of a LoRA adapter")
