"""What an adapter changes, as a list to measure: which tensor, in which layer, by which delta."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from labkit.errors import LabkitError, shown
from labkit.gradients.gradient import Gradient
from labkit.merging.matching import Change, not_finite, refuse_not_finite
from labkit.merging.planning import plan
from labkit.merging.recipe import Recipe, Term
from labkit.models.adapter import Adapter
from labkit.models.checkpoint import Checkpoint
from labkit.models.kinds.lora import LoraModule
from labkit.models.source import Source

if TYPE_CHECKING:
    from labkit.deltas.delta import Delta
    from labkit.deltas.low_rank import LowRank
    from labkit.files.tensor_file import StoredTensor

USUAL_ORDER = (
    "q_proj", "k_proj", "v_proj", "qkv_proj", "c_attn", "o_proj",
    "gate_proj", "up_proj", "gate_up_proj", "c_fc", "down_proj", "c_proj",
)  # fmt: skip
"""The order in which a decoder block uses its linear modules; others follow by name."""


@dataclass(frozen=True)
class SurveyedTensor:
    """One tensor that an adapter changes.

    Attributes:
        name: the base's tensor without `.weight`; without a base the adapter's module.
        layer: its decoder layer; None outside the layers.
        module: the end of its name that tells the modules of one layer apart: `q_proj`.
        scaling: `s` in `ΔW = s·B·A`; NaN for a change of another form.
        tensor: the base's tensor, where a base is known.
        delta: reads what is added to it, in the orientation of the base's tensor.
        projected: it is a matrix of a full model, whose difference has no factors: its largest
            singular values are found by projection.
    """

    name: str
    layer: int | None
    module: str
    scaling: float
    tensor: StoredTensor | None
    delta: Callable[[], Delta]
    projected: bool = False


def tensors_to_survey(base: Checkpoint | None, adapter: Source) -> list[SurveyedTensor]:
    """List what an adapter or a full model changes, layer by layer, then outside the layers.

    Raises:
        LabkitError: with a base, whatever a plan refuses; without one, an adapter of which the
            config selects no module. The deltas raise one for factors that are not finite.
    """
    found: list[tuple[str, int | None, float, StoredTensor | None, Callable[[], Delta]]]
    if base is not None:
        # A plan with every weight 1 is the one place that matches names and checks shapes.
        everything = Term(adapter, Gradient.constant(base.layers))
        resolved = plan(Recipe(base, [everything], rest=1.0))
        # All that is added to a tensor at weight 1, whatever its kind: `W_adapter − W`.
        found = [
            (
                change.tensor.name.removesuffix(".weight"),
                change.layer,
                _scaling(change),
                change.tensor,
                change.update,
            )
            for change in resolved.changes.values()
        ]
    elif not isinstance(adapter, Adapter):
        raise LabkitError(
            f"{shown(adapter.name)} is a full model, and what it changes is told from its base "
            "alone; name the base"
        )
    else:
        selected = [module for module in adapter.modules.values() if adapter.targets(module.name)]
        if not selected:
            raise LabkitError(
                f"target_modules of {shown(adapter.name)} selects none of the "
                f"{len(adapter.modules)} modules in its file; correct adapter_config.json"
            )
        layers = layers_by_name(module.name for module in selected)
        found = [
            (
                module.name,
                layers[module.name],
                module.scaling,
                None,
                partial(_delta, adapter, module),
            )
            for module in selected
        ]
    short = short_names((name, layer) for name, layer, *_ in found)
    listed = [
        SurveyedTensor(
            name,
            layer,
            short[name],
            scaling,
            tensor,
            delta,
            projected=adapter.kind == "model"
            and tensor is not None
            and min(tensor.matrix_shape) > 1,
        )
        for name, layer, scaling, tensor, delta in found
    ]
    return sorted(listed, key=lambda tensor: table_order(tensor.layer, tensor.module))


def _delta(adapter: Adapter, module: LoraModule) -> LowRank:
    """Read a module's factors; a plan, which checks them, is made with a base only."""
    delta = module.product()
    for tensor, values in ((module.a, delta.right), (module.b, delta.left)):
        refuse_not_finite(not_finite(values), tensor, adapter.describe(module))
    return delta


def _scaling(change: Change) -> float:
    """The scaling of the one contribution that has one."""
    found = [contribution.part.scaling for contribution in change.contributions]
    return found[0] if len(found) == 1 else math.nan


def table_order(layer: int | None, module: str) -> tuple[float, int, str]:
    """Where a row stands in a table: by layer, then in the order of use, the outside last."""
    last = module.rsplit(".", 1)[-1]
    order = USUAL_ORDER.index(last) if last in USUAL_ORDER else len(USUAL_ORDER)
    return float("inf") if layer is None else layer, order, module


def layers_by_name(names: Iterable[str]) -> dict[str, int | None]:
    """Tell each module's layer from the names alone.

    The first number in a name counts the members of a group (`model.layers`, `vision.blocks`). The
    group with the most modules is taken for the decoder layers; a base knows better.
    """
    numbers: dict[str, tuple[str, int] | None] = {}
    for name in names:
        match = re.match(r"(.*?)\.(\d{1,6})\.", f"{name}.")
        numbers[name] = (match[1], int(match[2])) if match else None
    groups = Counter(number[0] for number in numbers.values() if number)
    stack = groups.most_common(1)[0][0] if groups else None
    return {
        name: number[1] if number and number[0] == stack else None
        for name, number in numbers.items()
    }


def short_names(names: Iterable[tuple[str, int | None]]) -> dict[str, str]:
    """Shorten names to as many last parts as tell the modules of one layer apart.

    `model.layers.3.self_attn.q_proj` becomes `q_proj`; with experts it is `experts.0.w1`.

    Args:
        names: each module's name and layer.
    """
    paths: dict[str, tuple[str, ...]] = {}
    for name, layer in names:
        parts = tuple(name.split("."))
        if layer is not None:
            parts = parts[parts.index(str(layer)) + 1 :]
        paths[name] = parts
    different = set(paths.values())
    longest = max(map(len, different))
    length = next(
        (n for n in range(1, longest) if len({path[-n:] for path in different}) == len(different)),
        longest,
    )
    return {name: ".".join(path[-length:]) for name, path in paths.items()}
