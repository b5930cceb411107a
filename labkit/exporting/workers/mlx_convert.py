"""Quantises a model to 4 bits for MLX, with mlx-lm."""

import importlib.metadata
import json
import sys
from pathlib import Path


def main(folder: Path) -> None:
    """Convert as `job.json` says."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    from mlx_lm.convert import convert

    convert(
        job["source"],
        mlx_path=job["out"],
        quantize=True,
        q_bits=4,
        q_group_size=job["group_size"],
        trust_remote_code=False,
    )
    tools = {name: importlib.metadata.version(name) for name in ("mlx-lm", "mlx")}
    (folder / "result.json").write_text(json.dumps({"tools": tools}), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
