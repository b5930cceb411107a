"""The files of a model's and an adapter's folder: their names, and which of a hub's are needed.

A repository on the hub holds much that no merge reads: the same weights in other formats, in other
precisions (`model.fp16.safetensors`), for other programs (`consolidated.safetensors`, `original/`,
`onnx/`), and checkpoints of the training. Its list of files comes first, then the index, and then
exactly the files that transformers and PEFT would load, with those that belong beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

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

CONFIGS = (
    CONFIG, "generation_config.json", "preprocessor_config.json", "processor_config.json",
    "video_preprocessor_config.json", "audio_tokenizer_config.json", "configuration.json",
)  # fmt: skip
"""What transformers reads beside the weights (`transformers.utils`), and ModelScope's own."""
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja",
    "vocab.json", "vocab.txt", "vocab.bpe", "vocab-src.json", "vocab-tgt.json", "merges.txt",
    "target_vocab.json", "entity_vocab.json", "encoder.json", "normalizer.json", "emoji.json",
    "word_shape.json", "word_pronunciation.json", "byte_maps.json", "dict.txt", "bpe.codes",
    "prophetnet.tokenizer", "tokenizer.model", "tokenizer.model.v*", "tekken.json", "*.tiktoken",
    "*.bpe", "*.spm", "spiece.model", "sentencepiece.model", "sentencepiece.bpe.model",
    "spm.model", "spm_char.model",
)  # fmt: skip
"""The files of a tokenizer: all `vocab_files_names` of transformers' tokenizers, and those of
tokenizers that come with code of their own."""
CODE = ("*.py",)
"""The code of models that transformers does not know; it is copied, and labkit never runs it."""
LEGAL = ("LICENSE*", "LICENCE*", "NOTICE*", "COPYING*", "USE_POLICY*")
CARD = "README.md"

BESIDE_MODEL = (*CONFIGS, *TOKENIZER, *CODE, *LEGAL, CARD)
BESIDE_ADAPTER = (*TOKENIZER, *LEGAL, CARD)


def fits(name: str, patterns: Sequence[str]) -> bool:
    """Whether a file's name in its folder is one of those that the patterns stand for.

    A `*` does not lead into another folder.
    """
    return any(
        fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns
    )


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
    beside = [name for name in names if fits(name, BESIDE_MODEL)]
    chosen = next((name for name in SETS if name in there), None)
    if chosen in (INDEX, PICKLED_INDEX):
        listed = read_json(fetch([chosen]) / chosen).get("weight_map")
        files = listed.values() if isinstance(listed, dict) else ()
        return [*beside, chosen, *sorted({file for file in files if isinstance(file, str)})]
    if chosen is None:
        # As in a folder here, a single file of another name is the model. All the usual names are
        # asked for, so that the hub's library says which of them the cache lacks.
        single = [name for name in names if fits(name, ["*.safetensors"])]
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
    beside = [name for name in names if fits(name, (*BESIDE_ADAPTER, *EXTRA_WEIGHTS))]
    weights = next((name for name in ADAPTER_SETS if name in names), ADAPTER_WEIGHTS)
    return [ADAPTER_CONFIG, weights, *beside]


def folders_with(file: str, names: Sequence[str]) -> list[str]:
    """The folders, at any depth, that hold a file of some name; the highest first."""
    found = (name.removesuffix(f"/{file}") for name in names if name.endswith(f"/{file}"))
    return sorted(found, key=lambda name: (name.count("/"), name))


def below(reference: str, folder: str) -> str:
    """The reference of a folder inside the one that a hub reference names."""
    return f"{reference.rstrip('/')}/{folder}" if ":" in reference else f"{reference}:{folder}"
