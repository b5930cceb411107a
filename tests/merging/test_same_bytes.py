"""The same bytes whatever the process has set, and whichever processor calculates."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import make_adapter, make_base

MERGE = """
import hashlib, sys
from pathlib import Path
import labkit as lk

if sys.argv[1] == "flush":
    import torch

    assert torch.set_flush_denormal(True)
folder = Path(sys.argv[2])
out = Path(sys.argv[3])
for base in sys.argv[4:]:
    plan = lk.plan(folder / base, folder / "adapter", "0.5,1,-0.25,0.75", rest=0.5)
    plan.write(out / base, progress=False, device="cpu")
    lk.verify(out / base, progress=False, device="cpu")
    if sys.argv[1] == "flush":
        assert torch.tensor([1e-310], dtype=torch.float64)[0] * 0.5 == 0
lk.bake(folder / "plain", "0.5,1,-0.25,0.75", out / "baked")
for path in sorted(out.glob("*/*.safetensors")):
    print(path.relative_to(out), hashlib.sha256(path.read_bytes()).hexdigest())
"""
DTYPES = {"short": torch.bfloat16, "half": torch.float16, "single": torch.float32,
          "double": torch.float64}  # fmt: skip
KERNELS = {"Sandybridge": "avx", "Haswell": "avx2", "SkylakeX": "avx512f"}
"""OpenBLAS's kernels, and what a processor must have for them."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base of each dtype, whose numbers are among float16's subnormal ones, and an adapter."""
    root = tmp_path_factory.mktemp("bytes")
    for name, dtype in DTYPES.items():
        make_base(root / name, dtype, initializer_range=2e-5, hidden_size=64, head_dim=16)
    make_adapter(root / "adapter", root / "single", scale=3e-3, r=8, use_dora=True)
    make_adapter(root / "plain", root / "single")
    path = root / "plain" / "adapter_model.safetensors"
    tensors = load_file(path)
    # Some subnormal numbers of float32 too.
    tensors = {n: t * 1e-37 if "layers.0" in n and "lora_B" in n else t for n, t in tensors.items()}
    save_file(tensors, path)
    return root


def merged(folder, out, mode="as it is", bases=tuple(DTYPES), **environment):
    """Merge in a process of its own; the SHA-256 of what it made."""
    out.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", MERGE, mode, str(folder), str(out), *bases],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def expected(folder, tmp_path_factory):
    return merged(folder, tmp_path_factory.mktemp("undisturbed") / "out")


def test_a_process_that_flushes_subnormal_numbers(folder, expected, tmp_path):
    assert merged(folder, tmp_path / "out", "flush") == expected


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_of_the_matrix_products(folder, expected, tmp_path, kernel):
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists() or KERNELS[kernel] not in cpuinfo.read_text().split():
        pytest.skip(f"this processor has no {KERNELS[kernel]}")
    assert merged(folder, tmp_path / "out", OPENBLAS_CORETYPE=kernel) == expected
