"""Asks a model in transformers what it expects after every token."""

import importlib.metadata
import json
import sys
from pathlib import Path

import numpy as np

KERNELS = {"gptq": "torch", "awq": "torch_awq"}
"""GPT-QModel's kernels in PyTorch; it would compile others first, which takes minutes."""


def main(folder: Path) -> None:
    """Answer what `job.json` asks."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
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
    with torch.inference_mode():
        for number, tokens in enumerate(job["sequences"]):
            logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
            np.save(folder / f"{number}.npy", logits.float().log_softmax(-1).numpy())
    tools = {name: importlib.metadata.version(name) for name in ("transformers", *job["packages"])}
    (folder / "result.json").write_text(json.dumps({"tools": tools}), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
