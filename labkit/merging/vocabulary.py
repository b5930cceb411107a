"""Settles what belongs together: embedding and head, their tie, and the size of the vocabulary."""

from __future__ import annotations

from labkit.errors import LabkitError, shown
from labkit.files.tensor_file import StoredTensor
from labkit.merging.matching import CHECKED_ROWS, Change, Contribution
from labkit.merging.recipe import Recipe
from labkit.models.checkpoint import Checkpoint
from labkit.models.parts import LoraModule, TokenRows, WholeTensor


def settle(
    recipe: Recipe, found: dict[str, list[tuple[StoredTensor, Contribution]]]
) -> tuple[dict[str, Change], tuple[StoredTensor, ...]]:
    """Turn contributions into changes, in the base's order; untie the head where that is asked.

    Returns:
        the changes by the name of the tensor in the output, and tensors that the output has and
        the base has not (an untied head).

    Raises:
        LabkitError: a change of only one use of tied embeddings, or vocabularies that disagree.
    """
    base = recipe.base
    found = {name: [c for c in entries if c[1].weight != 0] for name, entries in found.items()}
    found = {name: entries for name, entries in found.items() if entries}
    added: tuple[StoredTensor, ...] = ()
    head, embedding = base.head, base.embedding
    if base.tied and head is not None and embedding is not None:
        if recipe.untie:
            added = (head,) if head.name not in base.tensors else ()
        else:
            _require_tied(found, head.name, embedding.name, base)
            if head.name not in base.tensors:
                found.pop(head.name, None)
    order = [*base.tensors.values(), *added]
    changes = {}
    for tensor in order:
        if tensor.name in found:
            contributions = tuple(contribution for _, contribution in found[tensor.name])
            changes[tensor.name] = Change(
                tensor, base.layer_of(tensor.name), contributions, _shape(tensor, contributions)
            )
    _require_one_vocabulary(recipe, changes, added)
    return changes, added


def _shape(tensor: StoredTensor, contributions: tuple[Contribution, ...]) -> tuple[int, ...]:
    grown = [c.module for c in contributions if isinstance(c.module, WholeTensor)]
    grown = [part for part in grown if part.shape != tensor.shape]
    if not grown:
        for contribution in contributions:
            part = contribution.module
            if isinstance(part, LoraModule) and part.embedding and part.shape[1] > tensor.shape[0]:
                raise LabkitError(
                    f"module {shown(part.name)!r} has {part.shape[1]} tokens and the base "
                    f"{tensor.shape[0]}, and the adapter does not hold the new tokens' "
                    "embeddings; save it with save_embedding_layers=True"
                )
        return tensor.shape
    for contribution in contributions:
        part = contribution.module
        rows = grown[0].shape[0]
        if isinstance(part, LoraModule):
            rows = part.shape[1] if part.embedding else part.shape[0]
        if len(grown) > 1 or rows != grown[0].shape[0]:
            raise LabkitError(
                f"several changes of {shown(tensor.name)!r} disagree about the size of the "
                f"vocabulary (the base has {tensor.shape[0]} tokens, one change "
                f"{grown[0].shape[0]}); merge an adapter that adds tokens by itself"
            )
    return grown[0].shape


def _require_tied(
    found: dict[str, list[tuple[StoredTensor, Contribution]]],
    head: str,
    embedding: str,
    base: Checkpoint,
) -> None:
    def others(name: str) -> list[Contribution]:
        # PEFT carries trained token rows over to a tied head by itself.
        return [c for _, c in found.get(name, []) if not isinstance(c.module, TokenRows)]

    ours, theirs = others(embedding), others(head)
    if not ours and not theirs:
        return
    same = len(ours) == len(theirs) and all(map(_same_change, ours, theirs))
    if same:
        return
    only = "the embedding and not the head" if not theirs else "the head and not the embedding"
    if ours and theirs:
        only = "the embedding and the head in different ways"
    raise LabkitError(
        f"the base {shown(base.name)} uses one tensor as embedding and as head (tied), and the "
        f"adapter changes {only}; untie them (--untie writes a separate head), or leave it out "
        "(--rest 0)"
    )


def _same_change(one: Contribution, other: Contribution) -> bool:
    if not (isinstance(one.module, WholeTensor) and isinstance(other.module, WholeTensor)):
        return False
    a, b = one.module.tensor, other.module.tensor
    if one.weight != other.weight or a.shape != b.shape or a.dtype != b.dtype:
        return False
    rows = a.matrix_shape[0]
    return all(
        bool((a.read_rows(i, min(i + CHECKED_ROWS, rows))
              == b.read_rows(i, min(i + CHECKED_ROWS, rows))).all())
        for i in range(0, rows, CHECKED_ROWS)
    )  # fmt: skip


def _require_one_vocabulary(
    recipe: Recipe, changes: dict[str, Change], added: tuple[StoredTensor, ...]
) -> None:
    sizes = {}
    for name in (*recipe.base.vocabulary, *(tensor.name for tensor in added)):
        if name in changes:
            sizes[name] = changes[name].shape[0]
        elif name in recipe.base.tensors:
            sizes[name] = recipe.base.tensors[name].shape[0]
        elif added:
            sizes[name] = added[0].shape[0]
    if len(set(sizes.values())) > 1 and any(len(c.shape) == 2 and c.shape != c.tensor.shape
                                            for c in changes.values()):  # fmt: skip
        said = ", ".join(f"{shown(name)} {rows}" for name, rows in sizes.items())
        raise LabkitError(
            f"the merged model's embedding and head would have different numbers of tokens "
            f"({said}); the adapter must hold both: save it with save_embedding_layers=True"
        )
