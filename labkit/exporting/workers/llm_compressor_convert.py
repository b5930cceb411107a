"""Quantises a model with llm-compressor: as FP8, or as W4A16.

Without calibration the weights are rounded, file by file and without the model's code (FP8 is made
so always). With it, GPTQ rounds each column so as to make up for the errors of those before it.
"""

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

LEFT = ["lm_head", "re:.*embed_tokens$", r"re:.*[._]gate$", "re:.*router.*"]
"""What keeps its bits: embeddings, the head, and what sends tokens to experts (Mixtral's and
Qwen's `gate` and `shared_expert_gate`, `router` of others), which are small and decide much."""


def main(folder: Path) -> None:
    """Convert as `job.json` says."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
    )

    if job["scheme"] == "W4A16":
        weights = QuantizationArgs(
            num_bits=4, type="int", strategy="group", group_size=job["group_size"], symmetric=True
        )
        groups = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}
        if job["calibration"]:
            by_gptq(job, groups)
        else:
            groups["group_0"].format = "pack-quantized"
            by_file(job, config=QuantizationConfig(config_groups=groups, ignore=LEFT))
    else:
        by_file(job, scheme=job["scheme"], ignore=LEFT)
    names = ("llmcompressor", "compressed-tensors")
    result = {"tools": {name: importlib.metadata.version(name) for name in names}}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


def by_file(job: dict[str, Any], **told: Any) -> None:
    """Round the weights, a file at a time."""
    from llmcompressor import model_free_ptq

    model_free_ptq(job["source"], job["out"], max_workers=1, device="cpu", **told)


def by_gptq(job: dict[str, Any], groups: dict[str, Any]) -> None:
    """Calibrate."""
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        job["source"], dtype="auto", local_files_only=True, trust_remote_code=False
    )
    texts = [
        {"input_ids": tokens, "attention_mask": [1] * len(tokens)} for tokens in job["calibration"]
    ]
    oneshot(
        model=model,
        dataset=Dataset.from_list(texts),
        recipe=[GPTQModifier(config_groups=groups, ignore=LEFT)],
        max_seq_length=max(map(len, job["calibration"])),
        num_calibration_samples=len(texts),
    )
    model.save_pretrained(job["out"], save_compressed=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
