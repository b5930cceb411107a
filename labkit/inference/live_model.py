"""A model in memory whose layer weights can be turned while it runs.

The base is loaded once, with transformers, and plain LoRAs are attached to it with PEFT. PEFT adds
`scaling · B(A x)` to what a module gives; a layer weight multiplies that scaling and touches no
weight of the model (`peft.tuners.lora.layer.Linear.forward`). The base and the whole LoRA are the
same model with the weights 0 and 1. Several mixtures can run in one batch, where each row has a
scaling of its own; three of them take about as long as one.

All other kinds of change (DoRA, parameters that were trained whole, experts, full models), and
recipes whose method is no sum, are merged in the model's memory when their weights change: see
`merged_tensors`. A batch of mixtures that differ in those runs one mixture after the other.
"""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor

from labkit.errors import LabkitError, shown
from labkit.gradients.gradient import Gradient
from labkit.inference.loading import (
    attach,
    dtype_that_fits,
    load_model,
    load_tokenizer,
    memory_for,
    turned_and_merged,
)
from labkit.inference.merged_slopes import flowing
from labkit.inference.merged_tensors import MergedTensors
from labkit.inference.mixtures import Mix as Mix
from labkit.inference.mixtures import memory_to_merge, require_dtype, require_form, require_memory
from labkit.inference.places import Places
from labkit.inference.quantising import PASSAGES, require_kind
from labkit.machine import choose_device, free_memory
from labkit.merging.planning import Change, Plan, plan
from labkit.merging.recipe import Recipe, Term, as_gradient
from labkit.models.checkpoint import Checkpoint
from labkit.models.full_model import open_source
from labkit.models.names import without_wrappers
from labkit.models.source import Source
from labkit.quiet import quiet

Weights = Gradient | str | Sequence[float]

_open: weakref.WeakValueDictionary[tuple[Any, ...], LiveModel] = weakref.WeakValueDictionary()
# A lab loads its model in a thread of its own, while a cell may ask for the same one.
_opening = threading.Lock()


def live(
    base: Recipe | Checkpoint | str | Path,
    *adapters: Source | Checkpoint | str | Path,
    rest: float | None = None,
    device: str = "auto",
    dtype: str = "auto",
    quantize: Literal["nf4", "int8"] | None = None,
) -> LiveModel:
    """Load a base model with adapters attached, their layer weights free to turn.

    Plain LoRA is turned by its scaling. All else (DoRA, saved modules, biases, embeddings, experts
    of a stack, full models) is merged in memory when a weight changes, as a merge writes it; that
    keeps the base's numbers of those tensors in memory beside the model.

    A recipe comes with its own adapters and weights. If its method is no sum, every tensor that it
    changes is merged in memory, to the numbers that a merge would write, bit for bit; the layer
    weights can be set as ever, and only tensors whose weights changed are merged again.

    The same base and adapters, while they are still in memory, are not loaded again: running a
    cell twice does not hold two copies.

    Args:
        base: the base model; or a recipe, then without adapters and `rest`.
        adapters: one or more LoRAs; or full models of the base's architecture.
        rest: the weight of what adapters change outside the layers, as in a recipe.
        device: "cuda", "mps", "cpu", or "auto" for the best there is.
        dtype: "float32", "bfloat16", "float16"; "auto" is the base's own on a GPU, and on a CPU
            float32, or bfloat16 where float32 does not fit in the free memory. For a recipe that
            names a dtype and has a method, it is that one.
        quantize: "nf4" (4 bits) or "int8", for bases that are too large: an approximation, in which
            plain LoRA alone is heard. `quantised_kl` measures it. Needs
            `pip install 'labkit[quantize]'`.

    Raises:
        LabkitError: no adapter, whatever `plan` refuses, another number of tokens than the base's,
            a device that is not there, a model that transformers cannot load without running code
            from the folder, or too little memory for a recipe's method.
    """
    recipe = None
    if isinstance(base, Recipe):
        if adapters or rest is not None:
            raise LabkitError(
                "a recipe has adapters and the weight outside the layers itself; give it to "
                "lk.live alone, or a base with adapters"
            )
        recipe = base
        base, rest = recipe.base, recipe.rest
        adapters = tuple(term.source for term in recipe.terms)
    checkpoint = Checkpoint.open(base)
    opened = tuple(map(open_source, adapters))
    if not opened:
        raise LabkitError("a live model needs at least one adapter beside the base")
    chosen = choose_device(device, ("cuda", "mps", "cpu"))
    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise LabkitError(
            f"the dtype {shown(dtype)!r} is unknown; expected auto, float32, bfloat16 or float16"
        )
    require_kind(quantize, chosen)
    merged = None
    if recipe is not None:
        resolved = plan(recipe)
        require_form(resolved)
        if not recipe.method.linear:
            merged, dtype = resolved, recipe.dtype if dtype == "auto" else dtype
    folders = tuple(one.folder.resolve() for one in opened)
    key = (checkpoint.folder.resolve(), folders, rest, chosen, quantize)
    with _opening:
        kind, note = dtype, ""
        if dtype == "auto" and quantize is not None:
            kind = "bfloat16"
        elif dtype == "auto" and chosen == "cpu":
            kind = "float32"
            if (*key, kind) not in _open:
                kind, note = dtype_that_fits(checkpoint, opened, merged)
        if merged is not None and chosen == "cpu" and (*key, kind) not in _open:
            require_memory(merged, memory_for(checkpoint, opened, kind, merged), free_memory())
        found = _open.get((*key, kind))
        if found is None or found.freed:
            found = LiveModel(checkpoint, opened, rest, chosen, kind, quantize, note)
            _open[*key, kind] = found
    if recipe is None:  # a model begins with the whole LoRA
        whole = Gradient.constant(checkpoint.layers)
        recipe = Recipe(checkpoint, [Term(one, whole) for one in opened], rest)
    found.use(recipe)
    return found


def free() -> None:
    """Free the memory of every live model, and of the last traceback, which can hold one."""
    for model in list(_open.values()):
        model.let_go()
    _open.clear()
    # A failed cell's traceback keeps its frames, and with them their tensors.
    for name in ("last_traceback", "last_value", "last_exc"):
        if getattr(sys, name, None) is not None:
            setattr(sys, name, None)
    _collect()


def _collect() -> None:
    """Take back the memory of what was let go; it takes a second where much is imported."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def whole_answers(steps: Iterable[Sequence[int | None]], rows: int) -> list[list[int]]:
    """The tokens of each row, out of what `LiveModel.stream` gives step by step."""
    found: list[list[int]] = [[] for _ in range(rows)]
    for step in steps:
        for row, token in zip(found, step, strict=True):
            if token is not None:
                row.append(token)
    return found


class LiveModel:
    """A base model with adapters, answering at any mixture of layer weights. See `live`.

    Attributes:
        base: the base model's files.
        adapters: the adapters' files; a full model that is added to the base is one of them.
        rest: the weight outside the layers.
        device: where it runs.
        quantize: how the base's linear modules are quantised in memory; None if they are not.
        note: why the model is in another dtype than float32 on a CPU, where that was not asked for.
        loras: for each adapter the plain LoRA modules that are turned: PEFT's layer, its key in it,
            and the scaling of a weight of 1.
        tokenizer: the base's tokenizer, as transformers has it.
    """

    def __init__(
        self,
        base: Checkpoint,
        adapters: tuple[Source, ...],
        rest: float | None,
        device: str,
        dtype: str,
        quantize: str | None = None,
        note: str = "",
    ) -> None:
        self.base, self.adapters, self.rest, self.device = base, adapters, rest, device
        self.quantize, self.note, self._dtype = quantize, note, dtype
        ones = Gradient.constant(base.layers)
        terms = [Term(adapter, ones) for adapter in adapters]
        # Without an adapter it is the base, and no recipe says that.
        self._recipe = Recipe(base, terms, rest) if adapters else None
        changes = _changes(self._recipe) if self._recipe else []
        # For each adapter, the layer of every module that it changes; None outside the layers.
        self._layers: list[dict[str, int | None]] = [
            {
                one.part.name: change.layer
                for change in changes
                for one in change.contributions
                if one.term == number
            }
            for number in range(len(adapters))
        ]
        self._model: Any = load_model(base, dtype, device, quantize)
        turned, merged = turned_and_merged(self._model, changes)
        self._merged = MergedTensors(Places(self._model, base), merged, adapters)
        self.loras = attach(self._model, turned, len(adapters))
        self.tokenizer: Any = load_tokenizer(base)
        # One forward pass at a time: scalings and merged tensors belong to the whole model.
        self._lock = threading.RLock()
        self._mix = self.mix(1.0 if self._recipe is None else self._recipe)

    # Which mixture is in force

    @property
    def weights(self) -> Gradient | dict[str, Gradient]:
        """The gradient in force; with several adapters, one for each adapter's name.

        Set it to a gradient, or to a mapping with one gradient for each adapter (by name or by
        number), where `"name:pattern"` is for the modules that a pattern selects. What is set
        counts from the next token on, also in a text that is being generated.
        """
        if len(self.terms) == 1:
            return self.terms[0].weights
        return {term.source.name: term.weights for term in self.terms}

    @weights.setter
    def weights(self, weights: Weights | Mapping[Any, Weights]) -> None:
        if not isinstance(weights, Mapping):
            if len(self.adapters) > 1:
                names = ", ".join(shown(adapter.name) for adapter in self.adapters)
                raise LabkitError(
                    f"the model has {len(self.adapters)} adapters ({names}); give a gradient for "
                    "each: {name: gradient}"
                )
            weights = {0: weights}
        self.use(self._named(weights))

    @property
    def terms(self) -> tuple[Term, ...]:
        """The terms in force: one for each adapter."""
        return () if self._recipe is None else tuple(self._recipe.terms)

    def use(self, terms: Sequence[Term] | Recipe) -> None:
        """Put a recipe in force, or other terms by the same method.

        Args:
            terms: one term for each adapter, in the model's order; or a recipe of such terms.

        Raises:
            LabkitError: as `mix`.
        """
        recipe = self._with(terms)
        self._mix = self.mix(recipe)
        self._recipe = recipe

    def mix(self, given: Recipe | Plan | Sequence[Term] | Gradient | float) -> Mix:
        """Prepare a mixture without putting it in force.

        Args:
            given: a recipe of the model's base, or its plan: a sum of the model's adapters is
                turned, and all else is merged in memory, whatever it adds. Or one term for each
                adapter, or one gradient for all, by the method in force. Or one weight for all:
                of their sum, whatever the method, so that 0 is the base and 1 the whole LoRA.

        Raises:
            LabkitError: a gradient of the wrong length, terms of other adapters, a recipe of
                another base, whatever `plan` refuses, what a live model cannot be, or too little
                memory.
        """
        if isinstance(given, (int, float)):
            whole = Gradient.constant(self.base.layers, given)
            return self._sum([Term(adapter, whole) for adapter in self.adapters], whole[0])
        if isinstance(given, Gradient):
            given = [Term(adapter, given) for adapter in self.adapters]
        if isinstance(given, Plan):
            recipe = given.recipe
        elif isinstance(given, Recipe) and not self._has(given.terms):
            recipe = given
        else:
            recipe = self._with(given)
        if recipe.method.linear and self._has(recipe.terms):
            return self._sum(recipe.terms, float(recipe.rest or 0))
        return self._merge_of(given if isinstance(given, Plan) else plan(recipe))

    def _with(self, given: Recipe | Sequence[Term]) -> Recipe:
        """A recipe with the model's own adapters; of terms, by the method in force.

        Raises:
            LabkitError: terms of other adapters.
        """
        recipe = given if isinstance(given, Recipe) else self._recipe
        terms = given.terms if isinstance(given, Recipe) else given
        if recipe is None or not self._has(terms):
            raise LabkitError("the terms are not of this model's adapters, in its order")
        pairs = zip(terms, self.adapters, strict=True)
        return replace(recipe, terms=[replace(term, source=own) for term, own in pairs])

    def _has(self, terms: Sequence[Term]) -> bool:
        """Whether terms are of the model's adapters, in its order."""
        folders = [term.source.folder.resolve() for term in terms]
        return folders == [adapter.folder.resolve() for adapter in self.adapters]

    def _sum(self, terms: Sequence[Term], rest: float) -> Mix:
        """The plain sum of the model's adapters."""
        mixed = []
        for term, layers in zip(terms, self._layers, strict=True):
            for gradient in (term.weights, *term.weights_for.values()):
                gradient.require(self.base.layers, f"{term.source.kind} {shown(term.source.name)}")
            mixed.append(
                {
                    name: rest if layer is None else term.gradient_for(name)[layer]
                    for name, layer in layers.items()
                }
            )
        return Mix(tuple(mixed))

    def _merge_of(self, resolved: Plan) -> Mix:
        """What a plan writes, merged in memory."""
        model = self._loaded()
        if resolved.base.folder.resolve() != self.base.folder.resolve():
            raise LabkitError(
                f"the recipe's base is {shown(resolved.base.name)}, and the live model's "
                f"{shown(self.base.name)}; hear it with lk.live(recipe)"
            )
        require_form(resolved)
        require_dtype(resolved, str(model.dtype).removeprefix("torch."))
        with self._lock:
            names = self._merged.names
            require_memory(resolved, memory_to_merge(resolved, names), free_memory())
            self._merged.hold(resolved)
        return Mix(self.mix(0.0).weights, resolved)

    def require_sum(self, what: str) -> None:
        """Check that the method in force is a sum, for what turns layer weights of one.

        Args:
            what: what needs it, for the error.

        Raises:
            LabkitError: it is another method.
        """
        if self._recipe is not None and not self._recipe.method.linear:
            raise LabkitError(
                f"{what} needs a plain sum, and the model has the method "
                f"{self._recipe.method.name} in force, through which no gradient flows; take "
                "lk.live(base, adapter), or compare recipes with lk.evaluate"
            )

    def layer_of(self, adapter: int, module: str) -> int | None:
        """The layer of a module that an adapter changes; None outside the layers."""
        return self._layers[adapter][module]

    def _named(self, weights: Mapping[Any, Weights]) -> list[Term]:
        terms = list(self.terms)
        numbers = {adapter.name: index for index, adapter in enumerate(self.adapters)}
        for key, value in weights.items():
            name, _, pattern = str(key).partition(":")
            index = key if isinstance(key, int) else numbers.get(name)
            if index is None or not 0 <= index < len(terms):
                raise LabkitError(
                    f"no adapter {shown(key)!r}; the model has {', '.join(map(shown, numbers))}"
                )
            old = terms[index]
            gradient = as_gradient(value)
            terms[index] = (
                Term(old.source, old.weights, {**old.weights_for, pattern: gradient})
                if pattern
                else Term(old.source, gradient)
            )
        return terms

    def _turn(self, mixes: Sequence[Mix]) -> None:
        """Scale what plain LoRAs add: one mixture for all rows, or one for each."""
        for index, modules in enumerate(self.loras):
            for name, (module, adapter_name, scaling) in modules.items():
                weights = [mix.weights[index][name] * scaling for mix in mixes]
                if len(set(weights)) == 1:
                    module.scaling[adapter_name] = weights[0]
                else:
                    # Shape rows × 1 × 1, against activations of rows × tokens × features.
                    rows = torch.tensor(weights, device=self.device).view(-1, 1, 1)
                    module.scaling[adapter_name] = rows

    def together(self, mixes: Sequence[Mix]) -> list[list[int]]:
        """The numbers of mixtures that can run in one batch, as they are merged alike."""
        if len(mixes) < 2:
            return [[*range(len(mixes))]]
        groups: dict[Any, list[int]] = {}
        for row, mix in enumerate(mixes):
            groups.setdefault(self._merged.key(mix), []).append(row)
        return list(groups.values())

    def merged_alike(self, mixes: Sequence[Mix]) -> bool:
        """Whether mixtures can take turns for every token, as nothing is merged between them."""
        return len(self.together(mixes)) < 2

    def alone(self) -> AbstractContextManager[Any]:
        """Entered while nothing else may run the model: other threads wait.

        For what is done with what `forward_weighted` gave: a backward pass needs the model's
        tensors as they were.
        """
        return self._lock

    # What it answers

    def forward(self, tokens: Tensor, mixes: Sequence[Mix] = (), cache: Any = None) -> Any:
        """Run the model over rows of tokens, each row with its own mixture.

        Rows whose mixtures differ in tensors that are merged run one after the other.

        Args:
            tokens: shape rows × length.
            mixes: one mixture for each row; for all rows the one in force if left out.
            cache: what an earlier pass returned as `past_key_values`, of the same mixtures.

        Returns:
            an output with `logits` of shape rows × length × vocabulary, and `past_key_values`.

        Raises:
            LabkitError: the model was freed.
        """
        with self._lock, torch.inference_mode():
            mixes = mixes or [self._mix]  # one mixture is that of every row
            groups = self.together(mixes)
            if len(groups) == 1:
                return self._run(tokens, mixes, cache)
            outputs = [
                self._run(tokens[rows], [mixes[row] for row in rows], cache and cache[number])
                for number, rows in enumerate(groups)
            ]
            logits = torch.cat([output.logits for output in outputs])
            order = torch.tensor([row for rows in groups for row in rows]).argsort()
            caches = [output.past_key_values for output in outputs]
            return SimpleNamespace(logits=logits[order], past_key_values=caches)

    def _run(self, tokens: Tensor, mixes: Sequence[Mix], cache: Any) -> Any:
        """One pass, of mixtures that are merged alike."""
        model = self._loaded()
        self._merged.put(mixes[0])
        self._turn(mixes)
        with quiet("bitsandbytes"):
            return model(input_ids=tokens.to(self.device), past_key_values=cache, use_cache=True)

    @property
    def module_names(self) -> list[tuple[int, str]]:
        """Every module that an adapter changes: the adapter's number, and the module's name."""
        return [(index, name) for index, layers in enumerate(self._layers) for name in layers]

    @property
    def config(self) -> Any:
        """Transformers' config of the model."""
        return self._loaded().config

    @property
    def decoder_layers(self) -> Sequence[torch.nn.Module]:
        """The decoder layers in order; empty where the model does not hold them as one list."""
        wanted = without_wrappers(self.base.layer_prefix)
        for name, module in self._loaded().named_modules():
            if isinstance(module, torch.nn.ModuleList) and without_wrappers(name) == wanted:
                return list(module)
        return []

    def forward_weighted(
        self,
        tokens: Tensor,
        mask: Tensor,
        weights: Tensor | Mix,
        around: AbstractContextManager[Any] | None = None,
    ) -> Tensor:
        """Run the model over padded rows, with a weight for every module; gradients flow to them.

        Gradients of modules that are merged need the model as it is until the backward pass: enter
        `alone()` around both.

        Args:
            tokens: shape rows × length.
            mask: 1 where there is a token, of the same shape.
            weights: shape rows × modules, or modules, in the order of `module_names`. All rows
                have the same where some modules are merged. Or a mixture, without gradients.
            around: entered for this pass alone, such as `LayerOutputs.kept()`.

        Returns:
            logits of all positions but the last, shape rows × (length - 1) × vocabulary.

        Raises:
            LabkitError: the model was freed, or gradients are asked for through a quantised model,
                or through a module that torch does not differentiate forwards.
            ValueError: rows of different weights for modules that are merged.
        """
        with self._lock, ExitStack() as stack:
            model = self._loaded()
            mix = weights if isinstance(weights, Mix) else None
            if isinstance(weights, Mix):
                weights = torch.tensor(weights.flat(), dtype=torch.float32, device=self.device)
            if self.quantize and weights.requires_grad:
                # On a CPU bitsandbytes' own operators have none, and pass over it in silence.
                raise LabkitError(
                    f"no gradient flows through a model that is quantised to {self.quantize}; use "
                    "ablation in place of sensitivity, fit with method='optuna', or leave out "
                    "quantize"
                )
            columns = {key: number for number, key in enumerate(self.module_names)}
            self._merged.put(mix or self._mix_of(weights))
            stack.callback(self._turn, [self._mix])
            for index, modules in enumerate(self.loras):
                for name, (module, adapter_name, scaling) in modules.items():
                    weight = weights[..., columns[index, name]] * scaling
                    # The backward pass needs its own tensors, and none of the module's.
                    module.scaling[adapter_name] = weight.to(model.dtype).view(-1, 1, 1)
            if weights.requires_grad and self._merged.in_sums:
                stack.enter_context(flowing(model, self._merged, weights, columns))
            stack.enter_context(quiet("bitsandbytes"))
            stack.enter_context(around or nullcontext())
            found = model(
                input_ids=tokens.to(self.device),
                attention_mask=mask.to(self.device),
                use_cache=False,
            )
            logits: Tensor = found.logits[:, :-1]
            return logits

    def _mix_of(self, weights: Tensor) -> Mix:
        """The mixture that weights for every module are.

        Raises:
            ValueError: the rows have different ones.
        """
        if not self._merged.in_sums:
            return Mix(())  # a sum, in which nothing is merged
        rows = weights.detach().reshape(-1, weights.shape[-1]).cpu()
        first = rows[0]
        if not torch.equal(rows, first.expand_as(rows)):
            raise ValueError("rows of different weights, where modules are merged in memory")
        # 0.1 came as a float32, and is merged as 0.1: the shortest decimal of that float32.
        decimals = iter([float(str(value)) for value in first.float().numpy()])
        return Mix(tuple({name: next(decimals) for name in layers} for layers in self._layers))

    @contextmanager
    def held(self, mix: Mix) -> Iterator[Any]:
        """Transformers' model with a mixture in force, for a library that runs it itself.

        Meanwhile nothing else runs it: other threads wait.

        Raises:
            LabkitError: the model was freed.
        """
        with self._lock:
            model = self._loaded()
            self._merged.put(mix)
            self._turn([mix])
            try:
                with quiet("bitsandbytes"):
                    yield model
            finally:
                self._turn([self._mix])

    def _loaded(self) -> Any:
        """The model, which another thread may have freed since the last look."""
        model = self._model
        if model is None:
            raise LabkitError("this model was freed; call lk.live(base, adapter) again")
        return model

    def tokens(self, text: str) -> Tensor:
        """The text's tokens, shape 1 × length, with the start token where the model has one.

        Raises:
            LabkitError: a text of no tokens.
        """
        found = self.tokenizer(text, return_tensors="pt").input_ids
        start = self.tokenizer.bos_token_id
        if found.shape[1] == 0 and start is not None:
            found = torch.tensor([[start]])
        if found.shape[1] == 0:
            raise LabkitError("the text is empty; write at least one word")
        return found

    def logits(self, text: str | Tensor) -> Tensor:
        """Logits at every position of a text: shape length × vocabulary, float32 on the CPU."""
        tokens = self.tokens(text) if isinstance(text, str) else text
        return self.forward(tokens).logits[0].float().cpu()

    def nll(self, texts: str | Sequence[str]) -> float:
        """Mean negative log-likelihood `-(1/n)·Σ log p(token | the tokens before it)`, in nats.

        The mean is over the tokens of all texts but each text's first one, with the mixture in
        force. A text is read as far as the model has positions.

        Raises:
            LabkitError: as `nll_of`.
        """
        return self.nll_of([texts] if isinstance(texts, str) else texts, [self._mix])[0]

    def nll_of(self, texts: Sequence[str], mixes: Sequence[Mix]) -> list[float]:
        """The `nll` of the texts at several mixtures, in one pass: one number for each mixture.

        Raises:
            LabkitError: texts with nothing to predict (fewer than two tokens), or a model that was
                freed.
        """
        total, count = torch.zeros(len(mixes)), 0
        longest = getattr(self._loaded().config, "max_position_embeddings", None) or 2048
        for text in texts:
            tokens = self.tokens(text)[:, :longest]
            length = tokens.shape[1] - 1
            if length < 1:
                continue
            logits = self.forward(tokens.expand(len(mixes), -1), mixes).logits[:, :-1].float()
            targets = tokens[:, 1:].expand(len(mixes), -1).to(logits.device)
            losses = torch.nn.functional.cross_entropy(
                logits.transpose(1, 2), targets, reduction="none"
            )
            total += losses.sum(dim=1).cpu()
            count += length
        if count == 0:
            raise LabkitError("the texts have nothing to predict; give at least two tokens")
        return [float(value) / count for value in total]

    def quantised_kl(self, texts: Sequence[str] = PASSAGES) -> float:
        """How far quantising moves the model, at the mixture in force.

        The unquantised model is loaded beside for the time being, in bfloat16 on a CPU and in the
        base's own dtype on a GPU.

        Args:
            texts: what both read; if left out, some sentences of plain English.

        Returns:
            the mean of `KL(unquantised ‖ quantised)` over the texts' next tokens, in nats.

        Raises:
            LabkitError: the model is not quantised, or there is too little memory for another one.
        """
        if self.quantize is None:
            raise LabkitError("the model is not quantised; lk.live(…, quantize=…) makes one")
        needed = memory_for(self.base, self.adapters, "bfloat16")
        free = free_memory() if self.device == "cpu" else torch.cuda.mem_get_info()[0]
        if free is not None and needed > free:
            raise LabkitError(
                f"the unquantised model needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are "
                "free: what quantising changes cannot be measured here"
            )
        dtype = "bfloat16" if self.device == "cpu" else "auto"
        exact = LiveModel(self.base, self.adapters, self.rest, self.device, dtype)
        try:
            exact.use(self.terms)
            found = []
            for text in texts:
                expected, mine = (one.logits(text).log_softmax(-1) for one in (exact, self))
                found.append((expected.exp() * (expected - mine)).sum(-1))
        finally:
            exact.free()
        return float(torch.cat(found).mean())

    def next_tokens(self, prompt: str, k: int = 10) -> list[tuple[str, float]]:
        """The k most probable next tokens and their probabilities, most probable first."""
        top = self.logits(prompt)[-1].softmax(-1).topk(k)
        return [
            (self.tokenizer.decode([token]), float(share))
            for share, token in zip(top.values, top.indices.tolist(), strict=True)
        ]

    def generate(
        self, prompt: str, max_tokens: int = 100, temperature: float = 0.0, seed: int = 0
    ) -> Iterator[str]:
        """Stream an answer, piece by piece. Weights that are set meanwhile count at once.

        Args:
            prompt: the text to go on from.
            max_tokens: longest answer.
            temperature: 0 always takes the most probable token.
            seed: of the random numbers, where the temperature is not 0.
        """
        written = ""
        tokens: list[int] = []
        for new in self.stream(prompt, (), max_tokens, temperature, seed):
            tokens += [token for token in new if token is not None]
            text = self.tokenizer.decode(tokens, skip_special_tokens=True)
            # A letter of several tokens cannot be read before its last one.
            if text.endswith("\ufffd") or len(text) == len(written):
                continue
            yield text[len(written) :]
            written = text

    def stream(
        self,
        prompt: str,
        mixes: Sequence[Mix],
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Iterator[list[int | None]]:
        """Stream answers of several mixtures side by side: one token for each row, step by step.

        A row that has ended gives None, and so does one whose turn has not come: mixtures that
        differ in tensors that are merged answer one after the other. All rows share one sequence of
        random numbers (Gumbel noise added to `logits / temperature`, of which the largest is
        taken), so that two answers differ because the weights do, and not by chance.

        Args:
            prompt: the text to go on from.
            mixes: one mixture for each row; empty for one row with the mixture in force.
            max_tokens: longest answer.
            temperature: 0 always takes the most probable token.
            seed: of the random numbers.
        """
        groups = self.together(mixes)
        if len(groups) > 1:
            # To merge anew for every token would take far longer than to read the prompt again.
            for group in groups:
                some = [mixes[row] for row in group]
                for step in self.stream(prompt, some, max_tokens, temperature, seed):
                    of_row = dict(zip(group, step, strict=True))
                    yield [of_row.get(row) for row in range(len(mixes))]
            return
        rows = max(1, len(mixes))
        ends = self._end_tokens()
        generator = torch.Generator().manual_seed(seed)
        tokens = self.tokens(prompt).expand(rows, -1)
        cache = None
        ended = [False] * rows
        for _ in range(max_tokens):
            output = self.forward(tokens, mixes, cache)
            cache = output.past_key_values
            scores = output.logits[:, -1].float().cpu()
            if temperature > 0:
                uniform = torch.rand(scores.shape[1], generator=generator).clamp(1e-20, 1 - 1e-7)
                scores = scores / temperature - torch.log(-torch.log(uniform))
            chosen = scores.argmax(-1)
            ended = [
                over or token in ends for over, token in zip(ended, chosen.tolist(), strict=True)
            ]
            if all(ended):
                return
            yield [
                None if over else token for over, token in zip(ended, chosen.tolist(), strict=True)
            ]
            tokens = chosen[:, None]

    def _end_tokens(self) -> set[int]:
        declared = getattr(self._loaded().generation_config, "eos_token_id", None)
        ends = set(declared if isinstance(declared, list) else [declared])
        return {end for end in (*ends, self.tokenizer.eos_token_id) if end is not None}

    @property
    def freed(self) -> bool:
        """Whether its memory was freed."""
        return self._model is None

    def free(self) -> None:
        """Free its memory; after that it cannot answer any more.

        Whoever still holds transformers' model has the base then.
        """
        self.let_go()
        _collect()

    def let_go(self) -> None:
        """What `free` does, but for collecting the memory."""
        with self._lock:
            if self._model is not None:
                base = self.mix(0.0)
                self._merged.put(base)
                self._turn([base])
                self._merged.let_go()
            self._model = None
            self.loras = []

    def __repr__(self) -> str:
        names = " + ".join(map(shown, (self.base.name, *(one.name for one in self.adapters))))
        said = [f"LiveModel {names} on {self.device}{f' ({self.note})' if self.note else ''}"]
        if self._mix.plan is not None:
            kept = f"{self._merged.nbytes / 1e6:.0f} MB of the base's numbers kept"
            said.append(f"{self._mix.plan.recipe.method_words} merged in memory, {kept}")
        if self.quantize:
            said.append(f"an approximation, as it is quantised to {self.quantize}")
        if self.freed:
            said.append("freed")
        return ", ".join(said)


def _changes(recipe: Recipe) -> list[Change]:
    """All that a recipe changes, at any weight.

    Raises:
        LabkitError: what `plan` refuses. The plan knows what belongs where.
    """
    resolved = plan(recipe)
    if recipe.rest == 0:
        # The whole of an adapter, at the weight 1, has what lies outside the layers, too; unless
        # no merge of it, or no live model, could have that.
        with suppress(LabkitError):
            whole = plan(replace(recipe, rest=1.0))
            if whole.vocabulary_size is None:
                resolved = whole
    return list(resolved.changes.values())
