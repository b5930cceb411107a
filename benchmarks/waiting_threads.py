"""How long a model takes to answer beside two busy processes, by how torch's threads wait.

Each answer is of a process of its own, in turn: with the system's own waiting (threads turn in
circles, for work that comes soon), and passive (they sleep), as `import labkit` asks for. The
processor time is that of the answering process alone.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

ANSWER = """
import os, time
if os.environ.pop("ACTIVE", ""):
    import torch
import labkit as lk
import torch
torch.set_num_threads(2)
base, loras = lk.demo()
model = lk.live(base, loras["kjv"], device="cpu")
list(model.generate("In the beginning", max_tokens=2))
wall, processor = time.perf_counter(), time.process_time()
list(model.generate("In the beginning", max_tokens={tokens}))
print(time.perf_counter() - wall, time.process_time() - processor)
"""


def answered(tokens: int, active: bool) -> tuple[float, float]:
    """Wall and processor time of an answer; `active` loads torch before labkit can ask."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"ACTIVE": "1" if active else "", "OMP_NUM_THREADS": "2"}
    said = subprocess.run(
        [sys.executable, "-c", ANSWER.format(tokens=tokens)],
        env=environment, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    return float(said[-2]), float(said[-1])


def main() -> None:
    """Measure both, and print their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--busy", type=int, default=2, help="busy processes beside")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(given.busy)]
    try:
        rounds = [
            (answered(given.tokens, active=True), answered(given.tokens, active=False))
            for _ in range(given.rounds)
        ]
    finally:
        for one in busy:
            one.kill()
    for name, each in zip(("as they come", "passive"), zip(*rounds, strict=True), strict=True):
        wall = statistics.median(one[0] for one in each)
        processor = statistics.median(one[1] for one in each)
        print(f"{name:14} {wall:6.1f} s, {processor:6.1f} s of processor time")
    ratios = [active[0] / passive[0] for active, passive in rounds]
    print("times as long:", ", ".join(f"{ratio:.1f}" for ratio in ratios))


if __name__ == "__main__":
    main()
