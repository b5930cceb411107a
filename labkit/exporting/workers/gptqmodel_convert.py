"""Quantises a model to 4 bits with GPT-QModel: as GPTQ, or as AWQ."""

import importlib.metadata
import json
import os
import sys
from pathlib import Path


def main(folder: Path) -> None:
    """Convert as `job.json` says."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    # GPT-QModel reads it once, when it is imported; of itself it wants more workers than a machine
    # with two processors gives it, and fails there.
    os.environ["GPTQMODEL_CPU_WORKERS"] = str(max(2, job["threads"]))
    import gptqmodel
    import torch
    from gptqmodel.quantization import FORMAT, METHOD

    torch.manual_seed(0)
    method = METHOD[job["method"].upper()]
    config = gptqmodel.QuantizeConfig(
        bits=4,
        group_size=job["group_size"],
        method=method,
        format=FORMAT.GPTQ if method == METHOD.GPTQ else FORMAT.GEMM,
        # As AWQ's authors have it: scales with zero points.
        sym=method == METHOD.GPTQ,
        offload_to_disk=True,
        offload_to_disk_path=str(folder / "offload"),
    )
    model = gptqmodel.GPTQModel.load(
        job["source"], config, device=job["device"], trust_remote_code=False
    )
    calibration = [
        {"input_ids": tokens, "attention_mask": [1] * len(tokens)} for tokens in job["calibration"]
    ]
    model.quantize(calibration=calibration, batch_size=1, calibration_data_min_length=1)
    model.save(job["out"])
    result = {"tools": {"gptqmodel": importlib.metadata.version("gptqmodel")}}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
