"""What belongs together: embedding and head, their tie, and the size of the vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from labkit.errors import LabkitError, shown, spelled
from labkit.files.tensor_file import StoredTensor
from labkit.gradients.gradient import plain
from labkit.merging.matching import Change, Contribution
from labkit.merging.recipe import Recipe
from labkit.models.checkpoint import Checkpoint

Contributions = Mapping[str, Sequence[Contribution]]
"""The base's tensor by name -> what is added to it."""


def changes_of(
    recipe: Recipe, found: Contributions
) -> tuple[dict[str, Change], tuple[StoredTensor, ...]]:
    """Turn contributions into changes, in the base's order; untie the head where that is asked.

    Returns:
        the changes by the name of the tensor in the output, and tensors that the output has and
        the base has not (an untied head).

    Raises:
        LabkitError: a change of only one use of tied embeddings, vocabularies that disagree, or
            several weights where a method needs one.
    """
    base = recipe.base
    weighted = {name: [one for one in all_ if one.weight != 0] for name, all_ in found.items()}
    weighted = {name: some for name, some in weighted.items() if some}
    added: tuple[StoredTensor, ...] = ()
    head, embedding = base.head, base.embedding
    if base.tied and head is not None and embedding is not None:
        if recipe.untie:
            added = (head,) if head.name not in base.tensors else ()
            _give_to_head(weighted, head, embedding.name)
        else:
            _require_tied(weighted, head.name, embedding.name, base)
            if head.name not in base.tensors:
                weighted.pop(head.name, None)
    changes = {
        tensor.name: Change(
            tensor,
            base.layer_of(tensor.name),
            tuple(weighted[tensor.name]),
            _shape(tensor, weighted[tensor.name])
            if tensor.name in base.vocabulary
            else tensor.shape,
            recipe.method,
            _term_weights(recipe, tensor, found.get(tensor.name) or weighted[tensor.name]),
        )
        for tensor in (*base.tensors.values(), *added)
        if tensor.name in weighted
    }
    _require_one_vocabulary(recipe, changes, added)
    return changes, added


def _term_weights(
    recipe: Recipe, tensor: StoredTensor, contributions: Sequence[Contribution]
) -> tuple[float, ...]:
    """The weight of each term of the recipe for a tensor; nothing for a method that is linear.

    Raises:
        LabkitError: a term has several, for modules that the base holds in one tensor.
    """
    if recipe.method.linear:
        return ()
    layer = recipe.base.layer_of(tensor.name)
    found: list[float] = []
    for number, term in enumerate(recipe.terms):
        given = {one.weight for one in contributions if one.term == number}
        if not given:
            gradient = term.gradient_for(tensor.name.rpartition(".")[0])
            given = {float(recipe.rest or 0) if layer is None else gradient[layer]}
        if len(given) > 1:
            raise LabkitError(
                f"{shown(term.source.name)} has the weights "
                f"{' and '.join(map(plain, sorted(given)))} for parts of the base's "
                f"{shown(tensor.name)!r}, and the method {recipe.method.name} needs one weight for "
                "a tensor; give the modules in it one weight, or merge with the method sum"
            )
        found += given
    return tuple(found)


def _shape(tensor: StoredTensor, contributions: Sequence[Contribution]) -> tuple[int, ...]:
    """The shape that a tensor with one row for each token gets.

    Raises:
        LabkitError: its changes disagree about how many tokens there are.
    """
    parts = [contribution.part for contribution in contributions]
    resized = [part for part in parts if part.resizes(tensor)]
    if not resized:
        for part in parts:
            tokens = part.vocabulary(tensor)
            if tokens is not None and tokens > tensor.shape[0]:
                raise LabkitError(
                    f"module {shown(part.name)!r} has {tokens} tokens and the base "
                    f"{tensor.shape[0]}, and the adapter does not hold the new tokens' "
                    "embeddings; save it with save_embedding_layers=True"
                )
        return tensor.shape
    rows = resized[0].shape[0]
    if len(resized) > 1 or any(part.vocabulary(tensor) not in (None, rows) for part in parts):
        raise LabkitError(
            f"several changes of {shown(tensor.name)!r} disagree about the size of the vocabulary "
            f"(the base has {tensor.shape[0]} tokens, one change {rows}); merge an adapter that "
            "adds tokens by itself"
        )
    return resized[0].shape


def _require_tied(found: Contributions, head: str, embedding: str, base: Checkpoint) -> None:
    def others(name: str) -> list[Contribution]:
        return [one for one in found.get(name, ()) if not one.for_head]

    ours, theirs = others(embedding), others(head)
    if len(ours) == len(theirs) and all(map(_same_change, ours, theirs)):
        return
    only = "the embedding and not the head" if not theirs else "the head and not the embedding"
    if ours and theirs:
        only = "the embedding and the head in different ways"
    raise LabkitError(
        f"the base {shown(base.name)} uses one tensor as embedding and as head (tied), and the "
        f"adapter changes {only}; untie them ({spelled('untie=True', '--untie')} writes a separate "
        f"head), or leave it out ({spelled('rest=0', '--rest 0')})"
    )


def _give_to_head(found: dict[str, list[Contribution]], head: StoredTensor, embedding: str) -> None:
    """Give an untied head what its sources change in the embedding for both."""
    given = [
        replace(one, match=replace(one.match, tensor=head))
        for one in found.get(embedding, [])
        if one.for_head
    ]
    if given and not any(one.for_head for one in found.get(head.name, [])):
        found[head.name] = [*given, *found.get(head.name, [])]


def _same_change(one: Contribution, other: Contribution) -> bool:
    return one.weight == other.weight and one.part.equals(other.part)


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
    resized = any(len(one.shape) == 2 and one.shape != one.tensor.shape for one in changes.values())
    if resized and len(set(sizes.values())) > 1:
        said = ", ".join(f"{shown(name)} {rows}" for name, rows in sizes.items())
        raise LabkitError(
            f"the merged model's embedding and head would have different numbers of tokens "
            f"({said}); the adapter must hold both: save it with save_embedding_layers=True"
        )
