"""Asks a model in transformers what it expects after every token."""

import importlib.metadata
import json
import os
import sys
from pathlib import Path

import numpy as np

KERNELS = {"gptq": "torch", "awq": "torch_awq"}
"""GPT-QModel's kernels in PyTorch; it would compile others first, which takes minutes."""
AT_ONCE = 8
"""Sequences that are read together: the weights are made floats again for each such reading."""


def main(folder: Path) -> None:
    """Answer what `job.json` asks."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    # GPT-QModel compiles its kernels, anew for each length, which takes longer than to use them.
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.set_num_threads(job["threads"])
    config = AutoConfig.from_pretrained(job["model"], local_files_only=True)
    quantised = getattr(config, "quantization_config", {})
    if quantised.get("quant_method") in KERNELS:
        quantised["backend"] = KERNELS[quantised["quant_method"]]
    model = AutoModelForCausalLM.from_pretrained(
        job["model"],
        config=config,
        dtype=torch.float32,
        device_map={"": "cpu"},
        local_files_only=True,
        trust_remote_code=False,
    ).eval()
    sequences = job["sequences"]
    for first in range(0, len(sequences), AT_ONCE):
        some = sequences[first : first + AT_ONCE]
        longest = max(map(len, some))
        # Padded at the end, where no token before it looks.
        rows = torch.tensor([tokens + [0] * (longest - len(tokens)) for tokens in some])
        with torch.inference_mode():
            logits = model(input_ids=rows, use_cache=False).logits
        for number, tokens in enumerate(some):
            found = logits[number, : len(tokens)].float().log_softmax(-1)
            np.save(folder / f"{first + number}.npy", found.numpy())
    tools = {name: importlib.metadata.version(name) for name in ("transformers", *job["packages"])}
    (folder / "result.json").write_text(json.dumps({"tools": tools}), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
