"""Merging against copying: wall time and peak memory, in turns, in one run.

    uv run python benchmarks/merge.py 3b --folder /big/disk

Makes a Llama-shaped checkpoint of random float16 weights and a LoRA of rank 16 on all linear
modules, then runs in turns: `cp -r` and sync; labkit with the first half of the layers at weight 0
and the second half at 1, with and without hashing; and PEFT (`from_pretrained`, `merge_and_unload`,
`save_pretrained`) where the model fits in memory. Every run is a process of its own, ends with
`sync`, and starts after a rest, with the inputs out of the page cache. Ratios are formed
within a round; the table shows their median.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

# hidden size, intermediate size, layers, heads: TinyLlama, OpenLLaMA 3B, Llama 2 7B and 13B
SHAPES = {
    "1b": (2048, 5632, 22, 32),
    "3b": (3200, 8640, 26, 32),
    "7b": (4096, 11008, 32, 32),
    "13b": (5120, 13824, 40, 40),
}
VOCABULARY = 32000
SHARD_BYTES = 4_000_000_000
RANK = 16
REST = 15
"""Seconds before each run: a disk, or the machine a virtual one is on, may still be busy with what
the run before has left it."""

# Whoever installs a program has its modules compiled from the second run on.
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
}

PEFT = """
import sys, torch
from transformers import AutoModelForCausalLM
from peft import PeftModel
base, adapter, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float16)
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
"""


def make_checkpoint(folder: Path, size: str, few: int | None = None) -> None:
    """Make a model of random weights; of fewer layers than its shape has, where that is asked."""
    import torch
    from safetensors.torch import save_file

    hidden, intermediate, layers, heads = SHAPES[size]
    layers = few or layers
    folder.mkdir()
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            shapes[f"{prefix}.self_attn.{name}.weight"] = (hidden, hidden)
        shapes[f"{prefix}.mlp.gate_proj.weight"] = (intermediate, hidden)
        shapes[f"{prefix}.mlp.up_proj.weight"] = (intermediate, hidden)
        shapes[f"{prefix}.mlp.down_proj.weight"] = (hidden, intermediate)
        shapes[f"{prefix}.input_layernorm.weight"] = (hidden,)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    shapes["lm_head.weight"] = (VOCABULARY, hidden)

    shards: list[list[str]] = [[]]
    filled = 0
    total = sum(2 * torch.Size(shape).numel() for shape in shapes.values())
    limit = min(SHARD_BYTES, total // 2 + 1)  # two shards at least
    for name, shape in shapes.items():
        nbytes = 2 * torch.Size(shape).numel()
        if filled + nbytes > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += nbytes
    weight_map = {}
    torch.manual_seed(0)
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {
            name: torch.randn(shapes[name]).mul_(0.02).half()
            if len(shapes[name]) == 2
            else torch.ones(shapes[name]).half()
            for name in names
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
    }
    (folder / "config.json").write_text(json.dumps(config))


def make_adapter(folder: Path, size: str, seed: int = 1, few: int | None = None) -> None:
    import torch
    from safetensors.torch import save_file

    hidden, intermediate, layers, _ = SHAPES[size]
    layers = few or layers
    folder.mkdir()
    modules = {f"self_attn.{name}_proj": (hidden, hidden) for name in "qkvo"}
    modules |= {"mlp.gate_proj": (intermediate, hidden), "mlp.up_proj": (intermediate, hidden)}
    modules["mlp.down_proj"] = (hidden, intermediate)
    tensors = {}
    torch.manual_seed(seed)
    for layer in range(layers):
        for module, (rows, columns) in modules.items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(RANK, columns) * 0.01
            tensors[f"{name}.lora_B.weight"] = torch.randn(rows, RANK) * 0.01
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": RANK,
        "target_modules": [module.split(".")[1] for module in modules],
        "task_type": "CAUSAL_LM",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


def forget(*folders: Path) -> None:
    """Take the folders' files out of the page cache, and leave the programs' files in it."""
    os.sync()
    for folder in folders:
        for path in folder.iterdir():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def run(command: list[str], base: Path, adapter: Path, out: Path) -> tuple[float, float]:
    """Run a command and sync; give wall seconds, and its peak memory in bytes."""
    shutil.rmtree(out, ignore_errors=True)
    forget(base, adapter)
    time.sleep(REST)
    began = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT
    )
    ended = threading.Event()
    peak = [0]
    watching = threading.Thread(target=watch, args=(process.pid, ended, peak))
    watching.start()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    os.sync()
    wall = time.perf_counter() - began
    ended.set()
    watching.join()
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed with {process.returncode}")
    return wall, max(peak[0], usage.ru_maxrss * 1024)


def watch(pid: int, ended: threading.Event, peak: list[int]) -> None:
    """Note the peak memory of a process and its children, seen ten times a second.

    Memory that they share counts once; the files of programs and libraries, for each of them.
    """
    while not ended.wait(0.1):
        own = shared = 0
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            for one in (str(pid), *children):
                fields = dict(
                    line.split(":", 1)
                    for line in Path(f"/proc/{one}/status").read_text().splitlines()
                )
                anonymous, files, memory = (
                    int(fields.get(name, "0 kB").split()[0]) * 1024
                    for name in ("RssAnon", "RssFile", "RssShmem")
                )
                own += anonymous + files
                shared = max(shared, memory)
        except OSError:
            continue  # one of them has just ended
        peak[0] = max(peak[0], own + shared)


def measure(size: str, folder: Path, rounds: int, skip_peft: bool) -> None:
    base, adapter, out = folder / "base", folder / "lora", folder / "out"
    print(f"making a {size} checkpoint and its LoRA ...", flush=True)
    # In a process of its own: a child's peak memory is counted from its parent's on.
    subprocess.run([sys.executable, __file__, size, "--make", str(folder)], check=True)
    nbytes = sum(path.stat().st_size for path in base.iterdir())
    layers = SHAPES[size][2]
    weights = f"0x{layers // 2},1x{layers - layers // 2}"
    labkit = [sys.executable, "-m", "labkit", "merge", str(base), str(adapter), "--quiet"]
    labkit += ["--weights", weights, "--out", str(out), "--device", "cpu"]
    commands = {
        "cp -r": ["cp", "-r", str(base), str(out)],
        "labkit": labkit,
        "labkit --no-hash": [*labkit, "--no-hash"],
    }
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if not skip_peft and nbytes * 1.5 < memory:
        commands["PEFT"] = [sys.executable, "-c", PEFT, str(base), str(adapter), str(out)]
    walls: dict[str, list[float]] = {name: [] for name in commands}
    peaks: dict[str, float] = dict.fromkeys(commands, 0.0)
    for number in range(rounds):
        for name, command in commands.items():
            wall, peak = run(command, base, adapter, out)
            walls[name].append(wall)
            peaks[name] = max(peaks[name], peak)
            print(f"  round {number + 1}: {name:<17}{wall:7.1f} s", flush=True)
    print(f"\n{size}: {nbytes / 1e9:.1f} GB, {len(os.sched_getaffinity(0))} cores, ", end="")
    print(f"{rounds} rounds, {platform.platform()}")
    print("\n| | wall (median) | × cp | peak memory |\n|---|---|---|---|")
    for name in commands:
        ratio = statistics.median(
            mine / copy for mine, copy in zip(walls[name], walls["cp -r"], strict=True)
        )
        wall = statistics.median(walls[name])
        print(f"| {name} | {wall:.1f} s | {ratio:.2f} | {peaks[name] / 1e9:.2f} GB |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", choices=SHAPES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="a folder on the disk to measure")
    parser.add_argument("--skip-peft", action="store_true")
    parser.add_argument("--make", type=Path, help="only make the inputs, in this folder")
    arguments = parser.parse_args()
    if arguments.make:
        make_checkpoint(arguments.make / "base", arguments.size)
        make_adapter(arguments.make / "lora", arguments.size)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="labkit-benchmark-") as folder:
        measure(arguments.size, Path(folder), arguments.rounds, arguments.skip_peft)


if __name__ == "__main__":
    main()
