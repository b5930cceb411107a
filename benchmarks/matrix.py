"""Merges every kind of adapter into every architecture and compares with PEFT; prints the table.

uv run python -m benchmarks.matrix
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from tests.kinds import ARCHITECTURES, KINDS, check, makes_sense


def main() -> int:
    """Run the cases that the arguments name (architectures), or all of them."""
    failed = passed = 0
    print(f"{'architecture':<14} {'adapter':<18} largest difference from PEFT, or the failure")
    with tempfile.TemporaryDirectory() as folder:
        for architecture in sys.argv[1:] or ARCHITECTURES:
            for kind in KINDS:
                if not makes_sense(architecture, kind):
                    continue
                try:
                    result = f"{check(Path(folder), architecture, kind):.1e}"
                    passed += 1
                # Whatever goes wrong is this case's result, and the next one follows.
                except Exception as error:  # noqa: BLE001
                    result = f"FAILED {type(error).__name__}: {str(error)[:300]}"
                    failed += 1
                print(f"{architecture:<14} {kind:<18} {result}", flush=True)
    print(f"{passed} as PEFT, {failed} not")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
