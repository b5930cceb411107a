"""Asks a GGUF file in llama.cpp: what it expects after every token, and how it cuts texts.

llama.cpp is the library in xllamacpp's wheel, called by its C interface (llama.h): its server gives
probabilities as JSON, which takes a second for each token. The structures that hold settings change
with versions; they are passed on as llama.cpp fills them, but for three numbers at the beginning of
one of them, which are read back.
"""

import ctypes
import importlib.metadata
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np

LEAST_CONTEXT = 256
"""llama.cpp rounds contexts up to multiples of it."""
MOST_SETTINGS = 1024
"""Bytes that a structure of settings has at most."""


class Settings(ctypes.Structure):
    """A structure of settings: larger than any of llama.cpp's, and so it holds each of them."""

    _fields_ = [("words", ctypes.c_uint32 * (MOST_SETTINGS // 4))]


class Batch(ctypes.Structure):
    """`llama_batch`: tokens to read, with their places, and whether logits are wanted of each."""

    _fields_ = [
        ("count", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embedding", ctypes.c_void_p),
        ("place", ctypes.POINTER(ctypes.c_int32)),
        ("sequences", ctypes.POINTER(ctypes.c_int32)),
        ("sequence", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("wanted", ctypes.POINTER(ctypes.c_int8)),
    ]


POINTER, INT, TEXT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p
CALLS = {
    "llama_backend_init": (None, []),
    "llama_log_set": (None, [POINTER, POINTER]),
    "llama_model_default_params": (Settings, []),
    "llama_context_default_params": (Settings, []),
    "llama_model_load_from_file": (POINTER, [TEXT, Settings]),
    "llama_init_from_model": (POINTER, [POINTER, Settings]),
    "llama_n_ctx": (ctypes.c_uint32, [POINTER]),
    "llama_n_batch": (ctypes.c_uint32, [POINTER]),
    "llama_n_ubatch": (ctypes.c_uint32, [POINTER]),
    "llama_set_n_threads": (None, [POINTER, INT, INT]),
    "llama_model_get_vocab": (POINTER, [POINTER]),
    "llama_vocab_n_tokens": (INT, [POINTER]),
    "llama_tokenize": (
        INT,
        [POINTER, TEXT, INT, ctypes.POINTER(INT), INT, ctypes.c_bool, ctypes.c_bool],
    ),
    "llama_model_chat_template": (TEXT, [POINTER, TEXT]),
    "llama_get_memory": (POINTER, [POINTER]),
    "llama_memory_clear": (None, [POINTER, ctypes.c_bool]),
    "llama_batch_init": (Batch, [INT, INT, INT]),
    "llama_decode": (INT, [POINTER, Batch]),
    "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), [POINTER, INT]),
    "llama_adapter_lora_init": (POINTER, [POINTER, TEXT]),
    "llama_set_adapters_lora": (
        INT,
        [POINTER, ctypes.POINTER(POINTER), ctypes.c_size_t, ctypes.POINTER(ctypes.c_float)],
    ),
}


class Llama:
    """A model in llama.cpp.

    Args:
        model: the GGUF file.
        context: tokens that are read at once, at most.
        threads: to calculate with.
        adapter: a LoRA's GGUF file, to be attached with the weight 1.
    """

    def __init__(self, model: str, context: int, threads: int, adapter: str | None = None) -> None:
        found = importlib.util.find_spec("xllamacpp")
        if found is None or not found.submodule_search_locations:
            raise SystemExit("xllamacpp is not installed")
        wheel = Path(found.submodule_search_locations[0])
        self.lib = ctypes.CDLL(str(next(wheel.glob("xllamacpp*.so"))))
        for name, (result, arguments) in CALLS.items():
            call = getattr(self.lib, name, None)
            if call is None:
                raise SystemExit(f"this xllamacpp has no {name}; install the version of the extra")
            call.restype, call.argtypes = result, arguments
        self._log = ctypes.CFUNCTYPE(None, ctypes.c_int, TEXT, POINTER)(self._say)
        self.lib.llama_log_set(ctypes.cast(self._log, POINTER), None)
        self.lib.llama_backend_init()
        self.said = ""
        settings = self.lib.llama_model_default_params()
        self.model = self.lib.llama_model_load_from_file(model.encode(), settings)
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load the file: {self.said}")
        settings = self.lib.llama_context_default_params()
        # n_ctx, n_batch, n_ubatch: the first three numbers.
        self.context = -(-max(context, 1) // LEAST_CONTEXT) * LEAST_CONTEXT
        settings.words[0:3] = [self.context] * 3
        self.run = self.lib.llama_init_from_model(self.model, settings)
        if not self.run:
            raise SystemExit(f"llama.cpp cannot run the file: {self.said}")
        there = [
            getattr(self.lib, f"llama_n_{one}")(self.run) for one in ("ctx", "batch", "ubatch")
        ]
        if there != [self.context] * 3:
            raise SystemExit(
                f"llama.cpp took {there} for contexts of {self.context}: this xllamacpp is laid "
                "out otherwise; install the version of the extra"
            )
        self.lib.llama_set_n_threads(self.run, threads, threads)
        self.vocabulary = self.lib.llama_model_get_vocab(self.model)
        self.size = self.lib.llama_vocab_n_tokens(self.vocabulary)
        self.batch = self.lib.llama_batch_init(self.context, 0, 1)
        if adapter is not None:
            lora = self.lib.llama_adapter_lora_init(self.model, adapter.encode())
            if not lora:
                raise SystemExit(f"llama.cpp cannot load the LoRA: {self.said}")
            one = (POINTER * 1)(lora)
            self.lib.llama_set_adapters_lora(self.run, one, 1, (ctypes.c_float * 1)(1.0))

    def _say(self, level: int, text: bytes, _: int) -> None:
        # 4 is an error; what follows a line is of its level 5.
        if level == 4 and text and text.strip():
            self.said = text.decode(errors="replace").strip()

    def read(self, tokens: list[int]) -> np.ndarray:
        """Read tokens from the beginning.

        Returns:
            natural logarithms of probabilities: float32 of shape tokens × vocabulary.
        """
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.run), True)
        batch = self.batch
        batch.count = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.place[i] = token, i
            batch.sequences[i], batch.sequence[i][0] = 1, 0
            batch.wanted[i] = 1
        status = self.lib.llama_decode(self.run, batch)
        if status:
            raise SystemExit(f"llama.cpp cannot read {len(tokens)} tokens ({status}): {self.said}")
        out = np.empty((len(tokens), self.size), np.float32)
        for i, row in enumerate(out):
            logits = np.ctypeslib.as_array(self.lib.llama_get_logits_ith(self.run, i), (self.size,))
            shifted = logits.astype(np.float64) - logits.max()
            row[:] = shifted - np.log(np.exp(shifted).sum())
        return out

    def tokens(self, text: str) -> list[int]:
        """Cut a text into tokens; with the start token where the model has one."""
        data = text.encode()
        out = (INT * (len(data) + 8))()
        count = self.lib.llama_tokenize(self.vocabulary, data, len(data), out, len(out), True, True)
        if count < 0:
            raise SystemExit(f"llama.cpp cannot cut a text into tokens ({count})")
        return list(out[:count])

    def chat_template(self) -> str | None:
        """The chat template in the file, or None."""
        found = self.lib.llama_model_chat_template(self.model, None)
        return found.decode() if found else None


def main(folder: Path) -> None:
    """Answer what `job.json` asks."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    longest = max(map(len, job["sequences"]))
    llama = Llama(job["model"], longest, job["threads"], job["adapter"])
    for number, sequence in enumerate(job["sequences"]):
        np.save(folder / f"{number}.npy", llama.read(sequence))
    result = {
        "tokens": [llama.tokens(text) for text in job["texts"]],
        "chat_template": llama.chat_template(),
        "tools": {"llama.cpp (xllamacpp)": importlib.metadata.version("xllamacpp")},
    }
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
