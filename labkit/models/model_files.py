"""The files of a model's and an adapter's folder: their names, and which of a hub's are needed.

A repository on the hub holds much that no merge reads: the same weights in other formats, in other
precisions (`model.fp16.safetensors`), for other programs (`consolidated.safetensors`, `original/`,
`onnx/`), and checkpoints of the training. Its list of files comes first, then the index, and then
exactly the files that transformers and PEFT would load, with those that belong beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from labkit.errors import LabkitError, shown
from labkit.files.references import Fetch
from labkit.files.small_files import read_json

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLED_INDEX = "pytorch_model.bin.index.json"
PICKLED_SINGLE = "pytorch_model.bin"
SETS = (SINGLE, INDEX, PICKLED_SINGLE, PICKLED_INDEX)
"""The ways in which a folder can hold a whole model, in the order in which transformers looks."""

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
MLX_WEIGHTS = "adapters.safetensors"
PICKLED_ADAPTER = "adapter_model.bin"
ADAPTER_SETS = (ADAPTER_WEIGHTS, MLX_WEIGHTS, PICKLED_ADAPTER)
"""The files that can hold an adapter's weights, in the order in which labkit looks."""
EXTRA_WEIGHTS = ("non_lora_trainables.bin", "trainable_params.bin")
"""Files that LLaVA and LongLoRA write beside an adapter, with what else they trained."""

CONFIGS = (CONFIG, "generation_config.json", "configuration.json", "*processor_config.json",
           "audio_tokenizer_config.json")  # fmt: skip
"""The model's configs, and those of what turns pictures and sound into its input."""
TEMPLATES = "additional_chat_templates"
"""The folder in which transformers keeps chat templates beside the first."""
VOCABULARY = (
    "tokenizer.json", "tokenizer.model.v*", "tekken.json", "vocab.*", "merges.txt", "encoder.json",
    "dict.txt", "*.model", "*.tiktoken", "*.bpe", "*.spm", "vocab-*.json", "*_vocab.json",
    "bpe.codes", "byte_maps.json", "emoji.json", "normalizer.json", "prophetnet.tokenizer",
    "word_pronunciation.json", "word_shape.json",
)  # fmt: skip
"""The tokens of a tokenizer, in any library's form: all that transformers' tokenizers name
(`vocab_files_names`), and those of tokenizers that come with code of their own."""
CHAT_TEMPLATES = ("chat_template.*", f"{TEMPLATES}/*.jinja")
TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
             *VOCABULARY, *CHAT_TEMPLATES)  # fmt: skip
CODE = ("*.py",)
"""The code of models that transformers does not know; it is copied, and labkit never runs it."""
LEGAL_NAMES = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY", "MODEL_LICENSE")
LEGAL_SUFFIXES = ("", ".txt", ".md", ".rst", ".html", ".pdf")
CARD = "README.md"


def is_one_of(name: str, patterns: Sequence[str]) -> bool:
    """Whether a file's name, as counted from its model's folder, fits one of some patterns.

    A `*` does not lead into another folder, and hidden files fit none.
    """
    return not name.startswith(".") and any(
        fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns
    )


def is_of_tokenizer(name: str) -> bool:
    """Whether a file's name, as counted from its model's folder, is one that tokenizers have."""
    return is_one_of(name, TOKENIZER)


def is_legal(name: str) -> bool:
    """Whether a file's name is that of a licence's text."""
    path = PurePosixPath(name)
    suffix = path.suffix.lower()
    known = suffix in LEGAL_SUFFIXES or suffix[1:].isdigit()
    return path.name == name and name.startswith(LEGAL_NAMES) and known


def is_side_file(name: str) -> bool:
    """Whether a file of this name may go along with a model; code goes only if a config names it.

    Args:
        name: the name as counted from the model's folder, such as
            `additional_chat_templates/tools.jinja`.
    """
    return is_one_of(name, CONFIGS) or is_of_tokenizer(name) or is_legal(name)


def model_downloads(reference: str, names: Sequence[str], fetch: Fetch) -> list[str]:
    """Choose what a base model on the hub needs; see `labkit.files.references.Choose`.

    Raises:
        LabkitError: there is no model in the folder, but in one below it.
    """
    there = set(names)
    deeper = folders_with(CONFIG, names)
    if CONFIG not in there and deeper:
        raise LabkitError(
            f"the hub's {shown(reference)} holds no {CONFIG}, but its folder {shown(deeper[0])!r} "
            f"does; name {shown(below(reference, deeper[0]))}"
        )
    beside = [name for name in names if is_side_file(name) or is_one_of(name, CODE) or name == CARD]
    chosen = next((name for name in SETS if name in there), None)
    if chosen in (INDEX, PICKLED_INDEX):
        listed = read_json(fetch([chosen]) / chosen).get("weight_map")
        files = listed.values() if isinstance(listed, dict) else ()
        return [*beside, chosen, *sorted({file for file in files if isinstance(file, str)})]
    if chosen is None:
        # As in a folder here, a single file of another name is the model. All the usual names are
        # asked for, so that the hub's library says which of them the cache lacks.
        single = [name for name in names if is_one_of(name, ["*.safetensors"])]
        return [*beside, *(single if len(single) == 1 else SETS)]
    return [*beside, chosen]


def adapter_downloads(reference: str, names: Sequence[str], _: Fetch) -> list[str]:
    """Choose what an adapter on the hub needs; see `labkit.files.references.Choose`.

    Raises:
        LabkitError: there is no adapter in the folder, but in others below it.
    """
    deeper = folders_with(ADAPTER_CONFIG, names)
    if ADAPTER_CONFIG not in names and deeper:
        raise LabkitError(
            f"the hub's {shown(reference)} holds no {ADAPTER_CONFIG}, but {len(deeper)} of its "
            f"folders do: name one of them, {shown(', '.join(deeper))} (such as "
            f"{shown(below(reference, deeper[0]))})"
        )
    beside = [
        name
        for name in names
        if is_of_tokenizer(name) or is_legal(name) or name in (*EXTRA_WEIGHTS, CARD)
    ]
    weights = next((name for name in ADAPTER_SETS if name in names), ADAPTER_WEIGHTS)
    return [ADAPTER_CONFIG, weights, *beside]


def folders_with(file: str, names: Sequence[str]) -> list[str]:
    """The folders, at any depth, that hold a file of some name; the highest first."""
    found = (name.removesuffix(f"/{file}") for name in names if name.endswith(f"/{file}"))
    return sorted(found, key=lambda name: (name.count("/"), name))


def below(reference: str, folder: str) -> str:
    """The reference of a folder inside the one that a hub reference names."""
    return f"{reference.rstrip('/')}/{folder}" if ":" in reference else f"{reference}:{folder}"
