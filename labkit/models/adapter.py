"""An adapter's folder (a LoRA on disk), opened lazily: its config, and what it changes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.errors import LabkitError, shown
from labkit.files.references import Located, Opened, locate, read_json, require_same_json
from labkit.files.tensor_file import TensorFile, open_tensor_file
from labkit.models.adapter_config import CONFIG, AdapterConfig, read_config
from labkit.models.adapter_file import read_parts
from labkit.models.parts import LoraModule as LoraModule
from labkit.models.parts import Part, WholeTensor

if TYPE_CHECKING:
    from labkit.deltas.delta import LowRank

WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
MLX_WEIGHTS = "adapters.safetensors"
DOWNLOADS = (CONFIG, WEIGHTS, PICKLED, MLX_WEIGHTS, "tokenizer*", "special_tokens_map.json",
             "added_tokens.json", "vocab.json", "merges.txt", "chat_template*",
             "README.md")  # fmt: skip


class Adapter(Opened):
    """A LoRA on disk. Opening one reads its config and its file's header only.

    Attributes:
        config: its `adapter_config.json`.
        file: its file of tensors.
        parts: everything it changes, in the order of the file.
        modules: name of the base's module -> its LoRA's factors and scaling (of linear modules and
            embeddings; DoRA's have a magnitude beside them).
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
            part.name: part for part in self.parts if isinstance(part, LoraModule)
        }
        if all(isinstance(part, WholeTensor) for part in self.parts):
            raise LabkitError(
                f"{shown(self.file.path)} holds no LoRA factors (lora_A, lora_B) among its "
                f"{len(self.file.tensors)} tensors; name the folder of a LoRA adapter"
            )

    def require_unchanged(self) -> None:
        """Check that config and weights are still those that were opened.

        Raises:
            LabkitError: one was changed, replaced or removed since.
        """
        require_same_json(self.folder / CONFIG, self.config)
        self.file.require_unchanged()

    @property
    def rank(self) -> int:
        """The largest rank of its modules."""
        return max((part.rank for part in self.parts if hasattr(part, "rank")), default=0)

    @property
    def plain(self) -> bool:
        """Whether all it does is add `s·B·A` to linear modules."""
        return all(isinstance(part, LoraModule) and part.plain for part in self.parts)

    def require_plain(self, what: str) -> None:
        """Check that all the adapter does is add `s·B·A` to linear modules.

        Raises:
            LabkitError: it does something else, which `what` (such as "bake") cannot carry.
        """
        for part in self.parts:
            if not (isinstance(part, LoraModule) and part.plain):
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
        return self.modules[module].delta()

    def targets(self, module: str) -> bool:
        """Tell whether the config's `target_modules` and its companions select a module."""
        return self._checked.targets(module)

    def asked_as(self, module: str) -> str:
        """The name by which PEFT asks `rank_pattern` and `alpha_pattern` for a module."""
        return self._checked.asked_as(module)

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
