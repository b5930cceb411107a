"""Turns what a plan adds to a tensor into numbers, read from the adapters' files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from labkit.deltas.delta import LowRank, Mixed, Placed, Rows, Scaled, Sum, dora_factors
from labkit.models.parts import BiasOfB, ExpertLora, LoraModule, TokenRows, WholeTensor

if TYPE_CHECKING:
    from labkit.merging.matching import Change, Contribution


def update_of(change: Change) -> LowRank | Sum:
    """Read all that is added to a tensor, weights included.

    What replaces the base's numbers comes first, then what is added to them: at weight 1 exactly
    the adapter's numbers stand there before anything else is added.
    """
    source = change.tensor
    if all(_is_product(contribution) for contribution in change.contributions):
        return LowRank.weighted_sum([(c.weight, c.delta()) for c in change.contributions])
    first: list[Mixed | Rows | Scaled | Placed | LowRank] = []
    scaled: list[Mixed | Rows | Scaled | Placed | LowRank] = []
    products: list[tuple[float, LowRank]] = []
    placed: list[Placed] = []
    for contribution in change.contributions:
        part, weight = contribution.module, contribution.weight
        if isinstance(part, WholeTensor):
            first.append(Mixed(part.tensor, weight, source.matrix_shape[0]))
        elif isinstance(part, TokenRows):
            indices, saved = part.read()
            first.append(Rows(indices, saved, weight))
        elif isinstance(part, ExpertLora) and contribution.expert is None:
            rows = source.shape[-2]
            for expert in range(part.experts):
                delta = part.factors_of(expert)
                delta = delta.transposed() if contribution.transposed else delta
                placed.append(Placed(LowRank(delta.left * weight, delta.right), expert * rows))
        elif isinstance(part, LoraModule) and part.magnitude is not None:
            delta = contribution.delta()
            factors = dora_factors(
                source, delta, part.magnitude.read().reshape(-1), contribution.transposed
            )
            scaled.append(Scaled((factors - 1) * weight, contribution.transposed))
            if contribution.transposed:
                products.append((weight, LowRank(delta.left, delta.right * factors)))
            else:
                products.append((weight, LowRank(delta.left * factors[:, None], delta.right)))
        else:
            products.append((weight, contribution.delta()))
    stacked = [LowRank.weighted_sum(products)] if products else []
    return Sum([*first, *scaled, *stacked, *placed], source, _rows(change))


def _is_product(contribution: Contribution) -> bool:
    part = contribution.module
    if isinstance(part, LoraModule):
        return part.magnitude is None
    return isinstance(part, BiasOfB) or (
        isinstance(part, ExpertLora) and contribution.expert is not None
    )


def _rows(change: Change) -> int:
    rows = change.tensor.matrix_shape[0]
    return change.shape[0] if change.shape != change.tensor.shape else rows
