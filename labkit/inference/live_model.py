"""A model in memory whose layer weights can be turned while it runs.

The base is loaded once, with transformers, and the adapters are attached to it with PEFT. PEFT adds
`scaling · B(A x)` to what a module gives; a layer weight multiplies that scaling and touches no
weight of the model (`peft.tuners.lora.layer.Linear.forward`). The base and the whole LoRA are the
same model with the weights 0 and 1. Several mixtures can run in one batch, where each row has a
scaling of its own; three of them take about as long as one.
"""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from labkit.errors import LabkitError, shown
from labkit.gradients.gradient import Gradient
from labkit.inference.loading import (
    attach,
    load_model,
    load_tokenizer,
    require_exact,
)
from labkit.machine import choose_device
from labkit.merging.planning import plan
from labkit.merging.recipe import Recipe, Term, as_gradient
from labkit.models.adapter import Adapter
from labkit.models.checkpoint import Checkpoint
from labkit.models.names import without_wrappers

Weights = Gradient | str | Sequence[float]

_open: weakref.WeakValueDictionary[tuple[Any, ...], LiveModel] = weakref.WeakValueDictionary()
# A lab loads its model in a thread of its own, while a cell may ask for the same one.
_opening = threading.Lock()


@dataclass(frozen=True, eq=False)
class Mix:
    """The weight of every module's delta: a gradient, resolved for a model's modules.

    Attributes:
        weights: one mapping of module to weight for each adapter, in the model's order.
    """

    weights: tuple[dict[str, float], ...]

    def flat(self) -> list[float]:
        """All weights in one list, in the order of `LiveModel.module_names`."""
        return [weight for of_adapter in self.weights for weight in of_adapter.values()]


def live(
    base: Checkpoint | str | Path,
    *adapters: Adapter | str | Path,
    rest: float | None = None,
    device: str = "auto",
    dtype: str = "auto",
) -> LiveModel:
    """Load a base model with adapters attached, their layer weights free to turn.

    The same base and adapters, while they are still in memory, are not loaded again: running a
    cell twice does not hold two copies.

    Args:
        base: the base model.
        adapters: one or more LoRAs.
        rest: the weight of what adapters change outside the layers, as in a recipe.
        device: "cuda", "mps", "cpu", or "auto" for the best there is.
        dtype: "float32", "bfloat16", "float16"; "auto" is float32 on a CPU and the base's own
            elsewhere.

    Raises:
        LabkitError: no adapter, one for which a layer weight is more than a scaling (DoRA, saved
            modules), whatever `plan` refuses, a device that is not there, or a model that
            transformers or PEFT cannot load without running code from the folder.
    """
    checkpoint = Checkpoint.open(base)
    opened = tuple(map(Adapter.open, adapters))
    if not opened:
        raise LabkitError("a live model needs at least one adapter beside the base")
    for adapter in opened:
        require_exact(adapter)
    chosen = choose_device(device, ("cuda", "mps", "cpu"))
    kind = ("float32" if chosen == "cpu" else "auto") if dtype == "auto" else dtype
    if kind not in ("auto", "float32", "bfloat16", "float16"):
        raise LabkitError(
            f"the dtype {shown(dtype)!r} is unknown; expected auto, float32, bfloat16 or float16"
        )
    folders = tuple(one.folder.resolve() for one in opened)
    key = (checkpoint.folder.resolve(), folders, rest, chosen, kind)
    with _opening:
        found = _open.get(key)
        if found is None or found.freed:
            found = LiveModel(checkpoint, opened, rest, chosen, kind)
            _open[key] = found
    # A model begins with the whole LoRA.
    found.weights = dict.fromkeys(range(len(opened)), Gradient.constant(checkpoint.layers))
    return found


def free() -> None:
    """Free the memory of every live model, and of the last traceback, which can hold one."""
    for model in list(_open.values()):
        model.free()
    _open.clear()
    # A failed cell's traceback keeps its frames, and with them their tensors.
    for name in ("last_traceback", "last_value", "last_exc"):
        if getattr(sys, name, None) is not None:
            setattr(sys, name, None)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class LiveModel:
    """A base model with adapters, answering at any mixture of layer weights. See `live`.

    Attributes:
        base: the base model's files.
        adapters: the adapters' files.
        rest: the weight outside the layers.
        device: where it runs.
        tokenizer: the base's tokenizer, as transformers has it.
    """

    def __init__(
        self,
        base: Checkpoint,
        adapters: tuple[Adapter, ...],
        rest: float | None,
        device: str,
        dtype: str,
    ) -> None:
        self.base, self.adapters, self.rest, self.device = base, adapters, rest, device
        ones = Gradient.constant(base.layers)
        self._terms = tuple(Term(adapter, ones) for adapter in adapters)
        # The plan refuses what would be attached wrongly, and knows each module's layer.
        ledger = plan(Recipe(base, self._terms, rest)).ledger
        self._layers = {(row.adapter, row.tensor): row.layer for row in ledger if row.base_tensor}
        self._model: Any = load_model(base, dtype, device)
        self.loras = attach(self._model, adapters, self._layers)
        self.tokenizer: Any = load_tokenizer(base)
        # One forward pass at a time: the scalings belong to the whole model.
        self._lock = threading.RLock()
        self._mix = self.mix(self._terms)

    # Which mixture is in force

    @property
    def weights(self) -> Gradient | dict[str, Gradient]:
        """The gradient in force; with several adapters, one for each adapter's name.

        Set it to a gradient, or to a mapping with one gradient for each adapter (by name or by
        number), where `"name:pattern"` is for the modules that a pattern selects. What is set
        counts from the next token on, also in a text that is being generated.
        """
        if len(self._terms) == 1:
            return self._terms[0].weights
        return {term.adapter.name: term.weights for term in self._terms}

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
        return self._terms

    def use(self, terms: Sequence[Term]) -> None:
        """Put the terms of a recipe in force: one for each adapter, in the model's order."""
        self._mix = self.mix(terms)
        self._terms = tuple(terms)

    def mix(self, terms: Sequence[Term] | Gradient | float) -> Mix:
        """Prepare a mixture without putting it in force.

        Args:
            terms: one term for each adapter; or one gradient, or one weight, for all.

        Raises:
            LabkitError: a gradient of the wrong length, or terms of other adapters.
        """
        if isinstance(terms, (int, float)):
            terms = Gradient.constant(self.base.layers, terms)
            rest = float(terms[0])
        else:
            rest = float(self.rest or 0)
        if isinstance(terms, Gradient):
            terms = [Term(adapter, terms) for adapter in self.adapters]
        if [term.adapter.folder for term in terms] != [adapter.folder for adapter in self.adapters]:
            raise LabkitError("the terms are not of this model's adapters, in its order")
        mixed = []
        for term in terms:
            for gradient in (term.weights, *term.weights_for.values()):
                gradient.require(self.base.layers, f"adapter {shown(term.adapter.name)}")
            of_module = {}
            for name, module in term.adapter.modules.items():
                layer = self._layers.get((term.adapter.name, module.a.name))
                of_module[name] = rest if layer is None else term.gradient_for(name)[layer]
            mixed.append(of_module)
        return Mix(tuple(mixed))

    def layer_of(self, adapter: int, module: str) -> int | None:
        """The layer of a module that an adapter changes; None outside the layers."""
        found = self.adapters[adapter]
        return self._layers.get((found.name, found.modules[module].a.name))

    def _named(self, weights: Mapping[Any, Weights]) -> list[Term]:
        terms = list(self._terms)
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
                Term(old.adapter, old.weights, {**old.weights_for, pattern: gradient})
                if pattern
                else Term(old.adapter, gradient)
            )
        return terms

    def _apply(self, mixes: Sequence[Mix]) -> None:
        for index, modules in enumerate(self.loras):
            for name, (module, adapter_name, scaling) in modules.items():
                weights = [mix.weights[index][name] * scaling for mix in mixes]
                if len(set(weights)) == 1:
                    module.scaling[adapter_name] = weights[0]
                else:
                    # Shape rows × 1 × 1, against activations of rows × tokens × features.
                    rows = torch.tensor(weights, device=self.device).view(-1, 1, 1)
                    module.scaling[adapter_name] = rows

    # What it answers

    def forward(self, tokens: Tensor, mixes: Sequence[Mix] = (), cache: Any = None) -> Any:
        """Run the model over rows of tokens, each row with its own mixture.

        Args:
            tokens: shape rows × length.
            mixes: one mixture for each row; for all rows the one in force if left out.
            cache: what an earlier pass returned as `past_key_values`.

        Returns:
            transformers' output: `logits` of shape rows × length × vocabulary.

        Raises:
            LabkitError: the model was freed.
        """
        with self._lock, torch.inference_mode():
            model = self._loaded()
            self._apply(mixes or [self._mix])  # one mixture is that of every row
            return model(input_ids=tokens.to(self.device), past_key_values=cache, use_cache=True)

    @property
    def module_names(self) -> list[tuple[int, str]]:
        """Every module that an adapter changes: the adapter's number, and the module's name."""
        return [
            (index, name) for index, adapter in enumerate(self.adapters) for name in adapter.modules
        ]

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
        weights: Tensor,
        around: AbstractContextManager[Any] | None = None,
    ) -> Tensor:
        """Run the model over padded rows, with a weight for every module; gradients flow to them.

        Args:
            tokens: shape rows × length.
            mask: 1 where there is a token, of the same shape.
            weights: shape rows × modules, or modules, in the order of `module_names`.
            around: entered for this pass alone, such as `LayerOutputs.kept()`.

        Returns:
            logits of all positions but the last, shape rows × (length - 1) × vocabulary.

        Raises:
            LabkitError: the model was freed.
        """
        with self._lock:
            model = self._loaded()
            columns = {key: number for number, key in enumerate(self.module_names)}
            try:
                for index, modules in enumerate(self.loras):
                    for name, (module, adapter_name, scaling) in modules.items():
                        weight = weights[..., columns[index, name]] * scaling
                        # The backward pass needs its own tensors, and none of the module's.
                        module.scaling[adapter_name] = weight.to(model.dtype).view(-1, 1, 1)
                with around or nullcontext():
                    found = model(
                        input_ids=tokens.to(self.device),
                        attention_mask=mask.to(self.device),
                        use_cache=False,
                    )
            finally:
                self._apply([self._mix])
            logits: Tensor = found.logits[:, :-1]
            return logits

    @contextmanager
    def held(self, mix: Mix) -> Iterator[Any]:
        """Transformers' model with a mixture in force, for a library that runs it itself.

        Meanwhile nothing else runs it: other threads wait.

        Raises:
            LabkitError: the model was freed.
        """
        with self._lock:
            model = self._loaded()
            self._apply([mix])
            try:
                yield model
            finally:
                self._apply([self._mix])

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

        A row that has ended gives None. All rows share one sequence of random numbers (Gumbel noise
        added to `logits / temperature`, of which the largest is taken), so that two answers differ
        because the weights do, and not by chance.

        Args:
            prompt: the text to go on from.
            mixes: one mixture for each row; empty for one row with the mixture in force.
            max_tokens: longest answer.
            temperature: 0 always takes the most probable token.
            seed: of the random numbers.
        """
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
        """Free its memory; after that it cannot answer any more."""
        with self._lock:
            self._model = None
            self.loras = []
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def __repr__(self) -> str:
        names = " + ".join(map(shown, (self.base.name, *(one.name for one in self.adapters))))
        return f"LiveModel {names} on {self.device}{', freed' if self.freed else ''}"
