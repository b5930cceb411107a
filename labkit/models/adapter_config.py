"""What an adapter's config says: each module's rank and alpha, what counts, what is refused.

Two formats are read: PEFT's `adapter_config.json`, which LLaMA-Factory, Unsloth, Axolotl and TRL
write too, and MLX-LM's of the same name.
"""

from __future__ import annotations

import math
import re
import time
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import regex

from labkit.errors import LabkitError, shown
from labkit.models.names import canonical

CONFIG = "adapter_config.json"
NOT_NAMED = "target_modules does not name it"
UNUSUAL = "target_modules is not there, and it is none of PEFT's usual modules of this model"
OTHER_LAYERS = "layers_to_transform leaves its layer out"
LONGEST_MATCH_SECONDS = 1.5
"""Patterns of a config that take longer on all names together are refused: some never end."""
LONGEST_PATTERN = 20_000
"""Characters of a pattern; compiling a longer one takes memory and time without end."""

MOST_WRITTEN_OUT = 20_000
"""Elements of a pattern with its repetitions written out, as the library does to compile it."""
SYNTAX = re.compile(
    r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|[()*+?]|\{(?P<least>\d*)(?P<most>,\d*)?\}|.", re.DOTALL
)
"""The elements of a regular expression; those that repeat the one before are `*+?` and `{2,5}`."""
UNREAD = re.compile(r"\(\?#|\(\?[A-Za-z]*x")
"""Comments in a pattern, in which anything may stand."""
LITERAL = re.compile(r"(\^?)((?:[\w.-]|\\[.-]|\\_)+)")
"""A pattern that is a name, with its dots escaped, as `labkit bake` writes them, or not."""
WORD = re.compile(r"[\w-]+")
"""A pattern that is one word of a module's name."""
ESCAPED = re.compile(r"\\?.")
"""One character of such a pattern."""

# Fields of PEFT's LoraConfig that say how to train or where to look, and change no merge.
HARMLESS = frozenset(
    "peft_type task_type auto_mapping peft_version base_model_name_or_path revision inference_mode "
    "r lora_alpha lora_dropout target_modules exclude_modules fan_in_fan_out bias use_rslora "
    "layers_to_transform layers_pattern rank_pattern alpha_pattern runtime_config "
    "megatron_config megatron_core qalora_group_size modules_to_save init_lora_weights "
    "loftq_config eva_config enable_lora merge_weights ensure_weight_tying use_dora lora_bias "
    "target_parameters trainable_token_indices corda_config lora_ga_config "
    "unsloth_fixed unsloth_version".split()
)
# What a layer weight has no meaning for, by the field that asks for it: what, and why.
REFUSED_FIELDS = {
    "layer_replication": ("copied layers (layer_replication)",
                          "the merged model would have other layers than the base"),
    "alora_invocation_tokens": ("activated LoRA (aLoRA)",
                                "its change begins at a token, and a merged weight has no such"),
    "use_qalora": ("quantisation-aware LoRA (QALoRA)",
                   "its factors belong to groups of a quantised base"),
    "monteclora_config": ("MonteCLoRA", "its change is drawn at random"),
    "use_bdlora": ("BD-LoRA", "its factors are block-diagonal for split models"),
    "arrow_config": ("Arrow routing", "it chooses between adapters for each token"),
    "velora_config": ("VeLoRA", "its factors come with projections that the merge lacks"),
    "kasa_config": ("KaSA", "it replaces the base's weights by an approximation of them"),
}  # fmt: skip
# What PEFT and others train that is no LoRA, and why a layer weight has no meaning for it.
REFUSED_KINDS = {
    "PROMPT_TUNING": "it trains virtual tokens, and changes no weight",
    "MULTITASK_PROMPT_TUNING": "it trains virtual tokens, and changes no weight",
    "P_TUNING": "it trains virtual tokens, and changes no weight",
    "PREFIX_TUNING": "it trains a prefix of keys and values, and changes no weight",
    "CARTRIDGE": "it trains a prefix of keys and values, and changes no weight",
    "ADAPTION_PROMPT": "it trains prompts inside the layers, and changes no weight",
    "IA3": "it multiplies activations, and adds nothing to a weight",
    "LOHA": "its delta is a Hadamard product of two factor pairs, not B·A",
    "LOKR": "its delta is a Kronecker product, not B·A",
    "ADALORA": "its delta has a third factor (lora_E) and a changing rank",
    "OFT": "it rotates the weights, and adds nothing to them",
    "BOFT": "it rotates the weights, and adds nothing to them",
    "HRA": "it reflects the weights, and adds nothing to them",
    "VERA": "its factors are shared random matrices that the file need not hold",
    "RANDLORA": "its factors are shared random matrices that the file need not hold",
    "VBLORA": "its factors are mixed from a shared bank of vectors",
    "FOURIERFT": "its delta is a Fourier transform of a few numbers",
    "LN_TUNING": "it trains norms only",
    "POLY": "it mixes several LoRAs by a learned routing",
    "XLORA": "it mixes several LoRAs by a gate for each token",
    "TRAINABLE_TOKENS": "it trains token rows only; train them with a LoRA "
    "(trainable_token_indices)",
}
# Initialisations that subtract something from the base's weights before training.
BASE_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")
REPEATED = ("pissa", "olora")
"""Those that PEFT repeats when it loads the adapter: they take nothing but the base's weights. It
repeats `pissa_niter_…` too, but that is drawn at random, and makes another base each time."""


class AdapterConfig:
    """PEFT's `adapter_config.json`, checked."""

    def __init__(self, values: dict[str, Any], name: str) -> None:
        """Take the config of an adapter of the given name.

        Raises:
            LabkitError: a kind of adapter that cannot be merged, or a field of the wrong type.
        """
        self.values = values
        self.name = name
        self._seconds_left = LONGEST_MATCH_SECONDS
        self._sets: dict[str, frozenset[str]] = {}
        self._patterns: dict[str, _Patterns] = {}
        self._compiled: dict[str, regex.Pattern[str]] = {}
        self._saved: tuple[frozenset[str], list[str]] | None = None
        self._parameters_of: defaultdict[str, list[tuple[int, str]]] | None = None
        self._left_out: dict[tuple[str, str | None], str | None] = {}
        self._matches: dict[tuple[str, str, bool], regex.Match[str] | None] = {}
        self._refuse_other_kinds()

    mlx = False
    """Whether MLX-LM wrote it, whose file holds the transposed factors."""

    @property
    def dora(self) -> bool:
        """Whether it says that the adapter is DoRA."""
        return bool(self.get("use_dora"))

    def get(self, field: str, default: Any = None) -> Any:
        """A field, or the default where it is missing or null."""
        value = self.values.get(field)
        return default if value is None else value

    def targets(self, module: str, model_type: str | None = None) -> bool:
        """Tell whether the config's `target_modules` and its companions select a module.

        PEFT loads only the factors of modules that they select
        (`peft.tuners.tuners_utils.check_target_module_exists`).

        Args:
            module: the module's name in the base.
            model_type: the base's; a config that names no modules means PEFT's usual ones of that
                type, and where there are none, or no base is known, all that the file holds.
        """
        return self.why_left_out(module, model_type) is None

    def why_left_out(self, module: str, model_type: str | None = None) -> str | None:
        """Why the config does not select a module; None if it does: see `targets`."""
        asked = (module, model_type)
        if asked not in self._left_out:
            self._left_out[asked] = self._find_reason(module, model_type)
        return self._left_out[asked]

    def _find_reason(self, module: str, model_type: str | None) -> str | None:
        excluded = self.get("exclude_modules")
        if excluded and self._selects(excluded, module, "exclude_modules"):
            return "exclude_modules names it"
        if self._is_saved_whole(module):
            return "modules_to_save trains it whole"
        if self._selects_parameter(module):
            return None
        target = self.get("target_modules")
        usual = _usual_modules(model_type) if target is None else None
        if target is None and (usual or not self.get("target_parameters")):
            if isinstance(usual, str):
                return None if self._match(usual, module, whole=True) else UNUSUAL
            if usual is not None and not _named_in(frozenset(usual), module):
                return UNUSUAL
            return None if self._transforms_layer(module) else OTHER_LAYERS
        if isinstance(target, str):
            # "all-linear" leaves out the output head, whatever its name; a head with factors of
            # its own was therefore named in another way.
            named = target.lower() == "all-linear"
            named = named or self._selects(target, module, "target_modules")
            return None if named else NOT_NAMED
        if not self._selects(target or [], module, "target_modules"):
            return NOT_NAMED
        in_full = module in self._set_of("target_modules")
        return None if in_full or self._transforms_layer(module) else OTHER_LAYERS

    def parameters(self, module: str) -> list[str]:
        """The parameters of a module that `target_parameters` names, other than its weight."""
        if self._parameters_of is None:
            self._parameters_of = defaultdict(list)
            for number, target in enumerate(self._names("target_parameters")):
                container, _, leaf = target.rpartition(".")
                if leaf != "weight":  # a bare name stands for the stacks of experts
                    self._parameters_of[container or "experts"].append((number, leaf))
        if not self._parameters_of:
            return []
        found = [one for end in _ends_of(module) for one in self._parameters_of.get(end, ())]
        # PEFT wraps them in the order in which the model's class defines them.
        order = {"gate_up_proj": 0, "down_proj": 1}
        return sorted((leaf for _, leaf in sorted(found)), key=lambda leaf: order.get(leaf, 2))

    def token_indices(self, module: str) -> tuple[int, ...]:
        """The rows of a module that `trainable_token_indices` trains, in the order of the file."""
        field: Any = self.get("trainable_token_indices")
        if isinstance(field, dict):
            matching = [v for k, v in field.items() if module == k or module.endswith(f".{k}")]
            if not matching and len(field) == 1 and canonical(module) == "lm_head":
                matching = list(field.values())  # a tied head has the embedding's rows
            field = matching[0] if matching else None
        if not isinstance(field, list) or not all(type(i) is int and i >= 0 for i in field):
            raise LabkitError(
                f"{CONFIG} of {shown(self.name)} has trainable_token_indices "
                f"{shown(self.get('trainable_token_indices'))}, which gives no rows for module "
                f"{shown(module)!r}; expected a list of token numbers"
            )
        return tuple(field)

    def rank_of(self, module: str) -> int:
        """The rank of a module or a parameter of one, by `rank_pattern` or `r`."""
        rank = self._pattern("rank_pattern", module, "r")
        if type(rank) is not int or rank < 1:
            raise LabkitError(
                f"{self._where(module)} has rank {shown(rank)} in {CONFIG}; expected 1 or more"
            )
        return rank

    def scaling_of(self, module: str, rank: int) -> float:
        """The scaling of a module: `alpha / r`, or `alpha / √r` for rsLoRA.

        Kalajdzievski, "A rank stabilization scaling factor for fine-tuning with LoRA", 2023,
        arXiv 2312.03732.
        """
        alpha = self._pattern("alpha_pattern", module, "lora_alpha")
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
            where = self._where(module)
            raise LabkitError(f"{where} has alpha {shown(alpha)!r} in {CONFIG}; expected a number")
        try:
            alpha = float(alpha)
        except OverflowError:
            alpha = math.inf
        if not math.isfinite(alpha):
            where = self._where(module)
            raise LabkitError(f"{where} has alpha {alpha} in {CONFIG}; expected a finite number")
        return alpha / (math.sqrt(rank) if self.get("use_rslora") else rank)

    def asked_as(self, module: str) -> str:
        """The name by which PEFT asks `rank_pattern` and `alpha_pattern` for a module.

        For a parameter that `target_parameters` names it is the parameter's own.
        """
        return f"{module}.weight" if self._selects_parameter(module) else module

    def _where(self, module: str) -> str:
        return f"module {shown(module)!r} of {shown(self.name)}"

    def _set_of(self, field: str) -> frozenset[str]:
        """A list of names as a set: it is asked for each module of the file."""
        if field not in self._sets:
            self._sets[field] = frozenset(self._names(field))
        return self._sets[field]

    def _names(self, field: str) -> list[str]:
        value = self.get(field, [])
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            return value
        raise LabkitError(
            f"{field} in {CONFIG} of {shown(self.name)} is {shown(value)}; expected a list of names"
        )

    def _selects_parameter(self, module: str) -> bool:
        return _named_in(self._set_of("target_parameters"), f"{module}.weight")

    def _selects(self, targets: str | Iterable[str], module: str, field: str) -> bool:
        if isinstance(targets, str):
            return self._match(targets, module, whole=True) is not None
        return _named_in(self._set_of(field), module)

    def _is_saved_whole(self, module: str) -> bool:
        """PEFT puts no factors where `modules_to_save` trains a module whole, or inside of it."""
        if self._saved is None:
            saved = self.get("modules_to_save")
            found = saved if isinstance(saved, list) else []
            names = [name for name in found if isinstance(name, str)]
            words = frozenset(filter(WORD.fullmatch, names))
            self._saved = words, [name for name in names if name not in words]
        words, patterns = self._saved
        return not words.isdisjoint(module.split(".")) or any(
            self._match(rf"(^|.*\.){name}($|\..*)", module, whole=False) for name in patterns
        )

    def _transforms_layer(self, module: str) -> bool:
        layers = self.get("layers_to_transform")
        if layers is None or layers == []:
            return True
        chosen = [layers] if isinstance(layers, int) else layers
        if not isinstance(chosen, list) or not all(type(layer) is int for layer in chosen):
            raise LabkitError(
                f"layers_to_transform in {CONFIG} of {shown(self.name)} is {shown(layers)}; "
                "expected layer numbers"
            )
        patterns = self.get("layers_pattern") or [r"[^.]*"]
        if not isinstance(patterns, str):
            patterns = self._names("layers_pattern") or [r"[^.]*"]
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            # The first number in a name is the layer's; later ones count experts.
            match = self._match(rf"(?:^|.*?\.){pattern}\.(?P<layer>\d+)\.", module, whole=False)
            if match:
                return int(match["layer"]) in chosen
        return False

    def _pattern(self, field: str, module: str, default: str) -> Any:
        """Read `rank_pattern` or `alpha_pattern` as `peft.utils.other.get_pattern_key` does."""
        if field not in self._patterns:
            given = self.get(field, {})
            if not isinstance(given, dict):
                raise LabkitError(f"{field} in {CONFIG} of {shown(self.name)} is not an object")
            self._patterns[field] = _Patterns(given)
        patterns = self._patterns[field]
        if not patterns.values:
            return self._default(default)
        module = self.asked_as(module)
        chosen = patterns.literal(module)
        for number, pattern in patterns.expressions:
            if chosen is not None and number > chosen:
                break
            if self._match(rf"(.*\.)?({pattern})$", module, whole=False):
                chosen = number
                break
        if chosen is not None:
            return patterns.values[chosen]
        return self._default(default)

    def _default(self, field: str) -> Any:
        return self.values.get(field, {"r": 8, "lora_alpha": 8}[field])

    def _match(self, pattern: str, name: str, whole: bool) -> regex.Match[str] | None:
        """Match a pattern from the config against a name, with an end to it.

        Raises:
            LabkitError: the pattern is too long or no regular expression, or all matches together
                take too long.
        """
        if (pattern, name, whole) in self._matches:
            return self._matches[pattern, name, whole]
        # Of this thread alone: a busy machine refuses nothing that an idle one takes.
        began = time.thread_time()
        try:
            if pattern not in self._compiled:
                self._compiled[pattern] = _compiled(pattern)
            compiled = self._compiled[pattern]
            match = compiled.fullmatch if whole else compiled.match
            found = match(name, timeout=max(self._seconds_left, 0.001))
        except (re.error, regex.error, ValueError, RecursionError, OverflowError) as error:
            raise LabkitError(
                f"{CONFIG} holds the pattern {shown(pattern)!r}, which is no regular expression: "
                f"{shown(error)}"
            ) from error
        except TimeoutError:
            found, self._seconds_left = None, 0
        self._seconds_left -= time.thread_time() - began
        if self._seconds_left <= 0:
            raise LabkitError(
                f"{CONFIG} holds the pattern {shown(pattern)!r}, which takes more than "
                f"{LONGEST_MATCH_SECONDS} s to match {shown(name)!r}; write a simpler pattern"
            )
        self._matches[pattern, name, whole] = found
        return found

    def _refuse_other_kinds(self) -> None:
        name = f"the adapter {shown(self.name)}"
        kind = self.values.get("peft_type")
        if kind != "LORA":
            reason = REFUSED_KINDS.get(kind if isinstance(kind, str) else "")
            because = reason or "labkit merges LORA, whose change a layer weight can scale"
            raise LabkitError(f"{name} is of the kind {shown(kind)!r}, which is refused: {because}")
        for field, (what, why) in REFUSED_FIELDS.items():
            if self.values.get(field):
                raise LabkitError(f"{name} uses {what}, which is refused: {why}")
        if self.get("bias", "none") not in ("none", "all", "lora_only"):
            raise LabkitError(
                f"{name} has bias {shown(self.values['bias'])!r} in {CONFIG}; expected none, all "
                "or lora_only"
            )
        start = str(self.get("init_lora_weights", "")).lower()
        if start.startswith(BASE_CHANGING):
            way_out = (
                "merge it into the base that LoftQ made and saved beside it, with "
                "init_lora_weights set to true in its config"
                if start.startswith("loftq")
                else "convert it to a plain LoRA with PEFT where it was trained "
                "(save_pretrained(..., path_initial_model_for_weight_conversion=...)), or merge it "
                "into the changed base it was trained on, with init_lora_weights set to true"
            )
            why = ""
            if start in REPEATED:
                why = (
                    " by a decomposition of its weights; labkit does not repeat that, since its "
                    "last bits are other ones on another machine"
                )
                way_out += "; PeftModel.from_pretrained(base, adapter).unload() is that base"
            raise LabkitError(
                f"{name} was initialised with {shown(start)!r}, which changes the base model{why}; "
                f"{way_out}"
            )
        for field, value in self.values.items():
            if field not in HARMLESS and field not in REFUSED_FIELDS and value:
                raise LabkitError(
                    f"{name} has the unknown field {shown(field)!r} = {shown(value)} in {CONFIG}, "
                    "which may change what its deltas mean; remove the field if it does not"
                )


def _compiled(pattern: str) -> regex.Pattern[str]:
    """Compile a pattern that Python's `re` takes, as PEFT does, for the library that has an end.

    Raises:
        LabkitError: it would take too much memory.
        re.error: it is none.
    """
    if len(pattern) > LONGEST_PATTERN:
        raise LabkitError(
            f"{CONFIG} holds a pattern of {len(pattern)} characters; expected at most "
            f"{LONGEST_PATTERN}; write a simpler pattern"
        )
    if _written_out(pattern) > MOST_WRITTEN_OUT:
        raise LabkitError(
            f"{CONFIG} holds the pattern {shown(pattern)!r}, whose repetitions stand for more "
            f"than {MOST_WRITTEN_OUT} characters; write a simpler pattern"
        )
    if UNREAD.search(pattern):
        raise re.error("comments in it are not read")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        re.compile(pattern)  # the library knows more: recursion, for one, and matches with errors
        # To it, letters in braces mean how many errors to forgive.
        return regex.compile(SYNTAX.sub(lambda e: r"\{" if e[0] == "{" else e[0], pattern))


def _written_out(pattern: str) -> int:
    """How many elements a pattern has with its repetitions written out.

    Repetitions inside each other multiply; `+` and its like are written out too, as twice.
    """
    outer: list[int] = []
    size = last = 0
    for element in SYNTAX.finditer(pattern):
        text = element[0]
        if text == "(":
            outer.append(size)
            size = last = 0
        elif text == ")":
            last = size + 1
            size = (outer.pop() if outer else 0) + last
        elif text in "*+?" or (text[0] == "{" and text[-1] == "}"):
            counts = (element["least"], (element["most"] or "").removeprefix(","))
            factor = max([2, *(int(count[:9]) for count in counts if count)])
            size += last * (factor - 1)
            last *= factor
        else:
            last = 1
            size += 1
    return size


class _Patterns:
    """The patterns of `rank_pattern` or `alpha_pattern`, of which the first that fits counts.

    Most are names, and are looked up: a file of thousands of experts may have as many. In a name
    that is not escaped each dot stands for any character; such names are grouped by where their
    dots are, and looked up with the characters there left out.

    Attributes:
        values: what each pattern gives, in their order.
        expressions: the number and text of each pattern that is no name.
    """

    def __init__(self, given: dict[str, Any]) -> None:
        self.values = list(given.values())
        self.expressions: list[tuple[int, str]] = []
        self._whole = _Names()
        self._ends = _Names()
        for number, pattern in enumerate(given):
            match = LITERAL.fullmatch(pattern)
            if match is None:
                self.expressions.append((number, pattern))
            else:
                (self._whole if match[1] else self._ends).add(match[2], number)

    def literal(self, module: str) -> int | None:
        """The number of the first name that fits a module."""
        found = [number for end in _ends_of(module) for number in self._ends.fitting(end)]
        return min([*self._whole.fitting(module), *found], default=None)


class _Names:
    """Names, each with the number of its pattern."""

    def __init__(self) -> None:
        # Length of a name -> where any character may stand -> the name without these -> its number.
        self._found: dict[int, dict[tuple[int, ...], dict[str, int]]] = {}

    def add(self, pattern: str, number: int) -> None:
        """Add a pattern that is a name."""
        characters = ESCAPED.findall(pattern)
        name = "".join(character[-1] for character in characters)
        free = tuple(at for at, character in enumerate(characters) if character == ".")
        groups = self._found.setdefault(len(name), {})
        groups.setdefault(free, {}).setdefault(_without(name, free), number)

    def fitting(self, name: str) -> Iterator[int]:
        """The numbers of the patterns that a name fits."""
        for free, numbers in self._found.get(len(name), {}).items():
            number = numbers.get(_without(name, free))
            if number is not None:
                yield number


def _without(name: str, positions: Sequence[int]) -> str:
    """A name without the characters at some positions."""
    if not positions:
        return name
    starts = (0, *(position + 1 for position in positions))
    return ".".join(map(name.__getitem__, map(slice, starts, (*positions, len(name)))))


def _ends_of(module: str) -> Iterator[str]:
    """What is behind each dot of a module's name, from the last, and the whole name."""
    position = module.rfind(".")
    while position >= 0:
        yield module[position + 1 :]
        position = module.rfind(".", 0, position)
    yield module


def _named_in(names: frozenset[str], module: str) -> bool:
    """Tell whether a list of names has a module's name, or the end of it."""
    return bool(names) and any(end in names for end in _ends_of(module))


def _usual_modules(model_type: str | None) -> Sequence[str] | str | None:
    """The modules that PEFT adapts in a type of model where a config names none."""
    if model_type is None:
        return None
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    usual: Sequence[str] | str | None = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(
        model_type
    )
    return usual


class MlxConfig(AdapterConfig):
    """MLX-LM's `adapter_config.json`: it names a rank and a scale, and every factor counts."""

    mlx = True

    @property
    def dora(self) -> bool:
        """Whether it says that the adapter is DoRA."""
        return bool(self.values.get("fine_tune_type") == "dora")

    def why_left_out(self, module: str, model_type: str | None = None) -> str | None:
        """Every factor in the file counts: MLX-LM loads them all."""
        return None

    def rank_of(self, module: str) -> int:
        """The rank, where the config says it."""
        rank = self._parameters().get("rank")
        if type(rank) is not int or rank < 1:
            raise LabkitError(
                f"the adapter {shown(self.name)} has rank {shown(rank)} in lora_parameters of "
                f"{CONFIG}; expected 1 or more"
            )
        return rank

    def scaling_of(self, module: str, rank: int) -> float:
        """MLX-LM's `scale`, which is the whole factor: it is not divided by the rank."""
        parameters = self._parameters()
        scale = parameters.get("scale")
        if "alpha" in parameters and parameters["alpha"] != rank:
            raise LabkitError(
                f"the adapter {shown(self.name)} has both alpha and scale in lora_parameters of "
                f"{CONFIG}, which releases of MLX-LM read differently; write scale alone: "
                "scale·alpha/rank for releases before June 2024, scale for later ones"
            )
        if isinstance(scale, bool) or not isinstance(scale, (int, float)):
            raise LabkitError(
                f"the adapter {shown(self.name)} has scale {shown(scale)!r} in lora_parameters of "
                f"{CONFIG}; expected a number"
            )
        if not math.isfinite(scale):
            raise LabkitError(
                f"the adapter {shown(self.name)} has scale {scale} in {CONFIG}; expected a finite "
                "number"
            )
        return float(scale)

    def _parameters(self) -> dict[str, Any]:
        parameters = self.values.get("lora_parameters")
        return parameters if isinstance(parameters, dict) else {}

    def _refuse_other_kinds(self) -> None:
        kind = self.values.get("fine_tune_type", "lora")
        if kind not in ("lora", "dora"):
            raise LabkitError(
                f"the adapter {shown(self.name)} is of MLX-LM's kind {shown(kind)!r}, which is "
                "refused: labkit merges lora and dora, whose change a layer weight can scale"
            )


def read_config(values: dict[str, Any], name: str) -> AdapterConfig:
    """Recognise whose config it is, and check it."""
    if "peft_type" not in values and ("lora_parameters" in values or "fine_tune_type" in values):
        return MlxConfig(values, name)
    return AdapterConfig(values, name)
