"""Runs the converter of ExLlamaV3 or ExLlamaV2."""

import importlib.metadata
import json
import runpy
import sys
from pathlib import Path


def main(folder: Path) -> None:
    """Convert as `job.json` says."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    sys.argv = [job["module"], *job["arguments"]]
    runpy.run_module(job["module"], run_name="__main__", alter_sys=True)
    result = {"tools": {job["package"]: importlib.metadata.version(job["package"])}}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
