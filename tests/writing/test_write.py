import json
import os
import shutil
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import benchmarks.merge
import labkit as lk
import labkit.files.direct_io
import labkit.merging.rounding
import labkit.writing.engine
import labkit.writing.layout
import labkit.writing.write
from labkit.files.atomic_folder import MARK
from labkit.files.direct_io import hash_file
from labkit.files.floats import round_once
from labkit.files.tensor_file import FLOAT_CODES
from tests.tiny import make_adapter, make_base, merged_by_peft

WEIGHTS = [0, 0.5, 1, -0.25]


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def model_files(folder):
    names = (".safetensors", "config.json", ".index.json")
    return {name: data for name, data in contents(folder).items() if name.endswith(names)}


@pytest.fixture(scope="module")
def plan(tiny_base, tiny_adapter):
    return lk.plan(tiny_base, tiny_adapter, lk.Gradient(WEIGHTS))


@pytest.fixture
def out(tmp_path):
    return tmp_path / "merged"


def write(plan, out, **options):
    return plan.write(out, progress=False, **{"device": "cpu", **options})


def oracle(base, plan, name, dtype):
    """The float64 result, rounded once."""
    total = base.tensors[name].read()
    if name in plan.changes:
        total = total + plan.changes[name].update().dense()
    code = FLOAT_CODES[str(dtype).removeprefix("torch.")]
    rounded = round_once(total, code)
    return torch.from_numpy(rounded.view(f"i{rounded.itemsize}")).view(dtype)


def test_the_folder_is_whole_and_right(plan, out, tiny_base):
    receipt = write(plan, out)
    base, merged = plan.base, lk.Checkpoint(out)
    assert {"README.md", "recipe.yaml", "receipt.json", "gradient.png"} < set(contents(out))
    assert (out / "LICENSE").read_text() == "the base's licence"
    assert [f.path.name for f in merged.files] == [f.path.name for f in base.files]
    assert list(merged.tensors) == list(base.tensors)
    for name in base.tensors:
        mine = merged.read(name)
        if name in plan.changes:
            assert torch.equal(mine, oracle(base, plan, name, torch.bfloat16))
        else:
            assert torch.equal(mine.view(torch.int16), base.read(name).view(torch.int16))
    assert receipt.untouched == 17
    assert not list(out.parent.glob(".*"))


def test_equals_peft_with_every_layer_scaled(tiny_base, tiny_adapter, out):
    plan = lk.plan(tiny_base, tiny_adapter, lk.Gradient(WEIGHTS), dtype="float32")
    write(plan, out)
    merged = lk.Checkpoint(out)
    theirs = merged_by_peft(tiny_base, tiny_adapter, WEIGHTS)
    for name in merged.tensors:
        torch.testing.assert_close(merged.read(name), theirs[name], rtol=0, atol=1e-7)


@pytest.mark.parametrize("changes", [{"use_rslora": True}, {"alpha_pattern": {"up_proj": 3}}])
def test_equals_peft_for_other_scalings(tiny_base, tmp_path, out, changes):
    lora = make_adapter(tmp_path / "lora", tiny_base, **changes)
    plan = lk.plan(tiny_base, lora, "1x4", dtype="float32")
    write(plan, out)
    merged, theirs = lk.Checkpoint(out), merged_by_peft(tiny_base, lora)
    for name in merged.tensors:
        torch.testing.assert_close(merged.read(name), theirs[name], rtol=0, atol=1e-7)


def test_fan_in_fan_out(tmp_path, out):
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(
        GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=64, n_positions=32)
    ).save_pretrained(tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lora = make_adapter(
            tmp_path / "lora", tmp_path / "base", target_modules=["c_attn", "c_proj"],
            fan_in_fan_out=True,
        )  # fmt: skip
    write(lk.plan(tmp_path / "base", lora, "1,1"), out)
    merged, theirs = lk.Checkpoint(out), merged_by_peft(tmp_path / "base", lora)
    changed = 0
    for name in merged.tensors:
        key = next(key for key in theirs if key.endswith(name))
        changed += "c_proj" in name
        torch.testing.assert_close(merged.read(name), theirs[key], rtol=0, atol=1e-7)
    assert changed


def test_transformers_loads_it(plan, out):
    from transformers import AutoModelForCausalLM

    write(plan, out)
    model = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert model.dtype == torch.bfloat16
    assert model(torch.tensor([[1, 2, 3]])).logits.isfinite().all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_another_dtype(tiny_base, tiny_adapter, out, dtype):
    plan = lk.plan(tiny_base, tiny_adapter, lk.Gradient(WEIGHTS), dtype=dtype)
    write(plan, out)
    merged = lk.Checkpoint(out)
    wanted = getattr(torch, dtype)
    for name in merged.tensors:
        assert torch.equal(merged.read(name), oracle(plan.base, plan, name, wanted)), name
    config = json.loads((out / "config.json").read_text())
    assert dtype in (config.get("dtype"), config.get("torch_dtype"))
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in merged.tensors.values())
    assert lk.verify(out, progress=False).tensors_computed == 21


def test_a_damaged_download_is_not_merged(tiny_base, tiny_adapter, tmp_path, out):
    cache = tmp_path / "models--owner--name"
    snapshot = cache / "snapshots" / "c"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for path in tiny_base.iterdir():
        blob = cache / "blobs" / hash_file(path)
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(f"../../blobs/{blob.name}")
    lk.plan(snapshot, tiny_adapter, "1x4").write(out, progress=False)
    weights = next(snapshot.glob("*.safetensors")).resolve()
    with weights.open("r+b") as file:  # one bit of the last number
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    again = tmp_path / "again"
    with pytest.raises(lk.LabkitError, match=f"its download is damaged; remove {weights}, and st"):
        lk.plan(snapshot, tiny_adapter, "1x4").write(again, progress=False)
    assert not again.exists()


def test_a_number_too_large_for_the_dtype_is_refused(tmp_path, tiny_adapter, out):
    from safetensors.torch import load_file, save_file

    base = make_base(tmp_path / "base", shard="1GB")
    stored = load_file(base / "model.safetensors")
    stored["model.norm.weight"][0] = 1e6
    save_file(stored, base / "model.safetensors", metadata={"format": "pt"})
    plan = lk.plan(base, tiny_adapter, "1x4", dtype="float16")
    with pytest.raises(lk.LabkitError, match=r"1 numbers of 'model.norm.weight' become too large"):
        write(plan, out)
    assert os.listdir(out.parent) == ["base"]


def test_the_same_bytes_whatever_the_blocks_and_threads(plan, out, tmp_path, monkeypatch):
    receipt = write(plan, out)
    for blocks, pieces, threads in ((64, 200, 1), (1 << 20, 1 << 25, 4)):
        monkeypatch.setattr(labkit.merging.rounding, "BLOCK_ELEMENTS", blocks)
        monkeypatch.setattr(labkit.writing.layout, "PIECE_BYTES", pieces)
        monkeypatch.setitem(labkit.writing.layout.MERGE_BYTES, "cpu", pieces)
        monkeypatch.setattr(labkit.writing.engine, "workers", lambda threads=threads: threads)
        other = tmp_path / f"other-{blocks}"
        again = write(plan, other)
        assert model_files(other) == model_files(out)
        for name in model_files(out):
            assert again.files_written[name] == receipt.files_written[name]
        for mine, theirs in zip(again.tensors, receipt.tensors, strict=True):
            assert mine.achieved == pytest.approx(theirs.achieved, rel=1e-6)
            assert mine.missing == pytest.approx(theirs.missing, rel=1e-4)


@pytest.mark.parametrize("way", ["through the page cache", "with shared blocks", "past the cache"])
def test_the_same_bytes_and_hashes_whichever_way_they_go(way, plan, out, tmp_path, monkeypatch):
    receipt = write(plan, out)
    if way == "through the page cache":
        monkeypatch.setattr(labkit.files.direct_io, "DIRECT", 0)
    elif way == "with shared blocks":  # the kernel copies then, shared or not
        monkeypatch.setattr(labkit.files.direct_io, "_shares_blocks", lambda *_: True)
    else:
        monkeypatch.setattr(labkit.files.direct_io, "_cached", lambda _: False)
    again = write(plan, tmp_path / "again")
    assert model_files(tmp_path / "again") == model_files(out)
    for name in model_files(out):
        assert again.files_written[name] == receipt.files_written[name]
        assert again.files_written[name] == hash_file(out / name)
    assert again.files_read == receipt.files_read
    assert all(hash_file(Path(path)) == digest for path, digest in again.files_read.items())


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json"])
def test_a_config_that_changes_meanwhile_is_noticed(name, tiny_base, tiny_adapter, tmp_path):
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    adapter = Path(shutil.copytree(tiny_adapter, tmp_path / "adapter"))
    plan = lk.plan(base, adapter, WEIGHTS)
    path = (base if name == "config.json" else adapter) / name
    path.write_text(json.dumps({**json.loads(path.read_text()), "use_cache": False}))
    with pytest.raises(lk.LabkitError, match=f"{name} was changed or removed while labkit worked"):
        write(plan, tmp_path / "out")
    path.unlink()
    with pytest.raises(lk.LabkitError, match=name):
        write(plan, tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["adapter", "base"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_writes_the_same_bytes(plan, out, tmp_path):
    write(plan, out)
    write(plan, tmp_path / "gpu", device="cuda")
    assert model_files(tmp_path / "gpu") == model_files(out)


def test_the_receipt(plan, out):
    import hashlib

    receipt = write(plan, out)
    rows = {row.name: row for row in receipt.tensors}
    assert set(rows) == set(plan.changes)
    for name, row in rows.items():
        dense = plan.changes[name].update().dense()
        assert row.asked == pytest.approx(np.linalg.norm(dense))
        change = lk.Checkpoint(out).read(name).double() - plan.base.read(name).double()
        assert row.achieved == pytest.approx(torch.linalg.norm(change).item())
        missing = torch.linalg.norm(change - torch.from_numpy(dense).reshape(change.shape)).item()
        assert row.missing == pytest.approx(missing, rel=1e-4)
        assert row.weights == plan.changes[name].weights
    stored = json.loads((out / "receipt.json").read_text())
    assert len(stored["tensors"]) == 21
    for name, digest in stored["files_written"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    for file in plan.base.files:
        assert (
            stored["files_read"][file.path.name]
            == hashlib.sha256(file.path.read_bytes()).hexdigest()
        )
    assert "21 changed, 17 with the base's own bytes" in repr(receipt)
    # The recipe names its files in order, whichever was finished first.
    sums = next(iter(lk.Recipe.load(out / "recipe.yaml").sha256.values()))
    names = [file.path.name for file in plan.base.files]
    assert len(names) > 1
    assert list(sums) == sorted(sums)
    assert set(names) < set(sums)


MEASURE = """
import os, sys
os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:2])
import labkit as lk
small, large = sys.argv[1:4], sys.argv[4:]

def peak():  # getrusage's would begin with that of the process that started this one
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

def merge(base, lora, out, weights):
    plan = lk.plan(base, lora, weights)
    plan.write(out, progress=False, device="cpu")
    return plan

merge(*small, [1.0] * 4)  # all libraries are loaded then
before = peak()
plan = merge(*large, [1.0])
print(plan.forecast().peak_memory, peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_the_forecast_of_memory_is_what_a_merge_takes(
    tiny_base, tiny_adapter, tmp_path, monkeypatch
):
    monkeypatch.setitem(benchmarks.merge.SHAPES, "a layer", (2048, 5632, 1, 16))
    monkeypatch.setattr(benchmarks.merge, "VOCABULARY", 64)
    benchmarks.merge.make_checkpoint(tmp_path / "base", "a layer")
    benchmarks.merge.make_adapter(tmp_path / "lora", "a layer")
    folders = [tiny_base, tiny_adapter, tmp_path / "small"]
    folders += [tmp_path / "base", tmp_path / "lora", tmp_path / "large"]
    command = [sys.executable, "-c", MEASURE, *map(str, folders)]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    forecast, taken = map(int, ran.stdout.split())
    assert 0.8 * forecast < taken < 1.1 * forecast


MEASURE_SAVED = MEASURE.replace(
    "lk.plan(base, lora, weights)",
    "lk.plan(lk.Recipe(base, [lk.Term(lora, lk.Gradient(weights))], rest=0.5))",
)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_the_forecast_holds_for_saved_embeddings_of_wide_rows(tiny_base, tiny_adapter, tmp_path):
    from safetensors.torch import save_file

    rows, width = 512, 16384
    torch.manual_seed(1)

    def numbers(*shape):
        return (torch.randn(*shape) * 0.02).to(torch.bfloat16)

    both = {name: numbers(rows, width) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    layer = "model.layers.0.self_attn.q_proj"
    for folder in ("base", "lora"):
        (tmp_path / folder).mkdir()
    tensors = {**both, f"{layer}.weight": numbers(8, width)}
    save_file(tensors, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    config = {"num_hidden_layers": 1, "vocab_size": rows, "tie_word_embeddings": False}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    # With weight 1/2 every second mean lies halfway between two numbers, and is merged by itself.
    saved = {f"base_model.model.{name}": value * 1.01 for name, value in both.items()}
    factors = {"A": numbers(2, width), "B": numbers(8, 2)}
    saved |= {f"base_model.model.{layer}.lora_{k}.weight": one for k, one in factors.items()}
    save_file(saved, tmp_path / "lora" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(config))
    folders = [tiny_base, tiny_adapter, tmp_path / "small"]
    folders += [tmp_path / "base", tmp_path / "lora", tmp_path / "large"]
    command = [sys.executable, "-c", MEASURE_SAVED, *map(str, folders)]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    forecast, taken = map(int, ran.stdout.split())
    assert taken < 1.1 * forecast


def test_no_hash_leaves_the_sums_out(plan, out):
    receipt = write(plan, out, hashes=False)
    assert receipt.files_read == receipt.files_written == {}
    assert "sha256" not in (out / "recipe.yaml").read_text()
    lk.verify(out, progress=False)


def test_links_share_only_what_is_untouched(tiny_base, tiny_adapter, out):
    plan = lk.plan(tiny_base, tiny_adapter, "0x3,1")
    receipt = write(plan, out, link=True)
    assert receipt.linked
    for file in plan.base.files:
        shared = os.path.samefile(file.path, out / file.path.name)
        assert shared == (file.path.name in receipt.linked)
        assert shared != any(t.name in plan.changes for t in file.tensors)
    lk.verify(out, progress=False)


def test_the_adapters_own_tokenizer_is_taken(tiny_base, tiny_adapter, tmp_path, out):
    base = shutil.copytree(tiny_base, tmp_path / "base")
    lora = shutil.copytree(tiny_adapter, tmp_path / "lora")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json"):
        (base / name).write_text('{"of": "base"}')
    (lora / "tokenizer_config.json").write_text('{"of": "lora"}')
    write(lk.plan(base, lora, "1x4"), out)  # half a tokenizer is none
    assert (out / "tokenizer_config.json").read_text() == '{"of": "base"}'
    (lora / "tokenizer.json").write_text('{"of": "lora"}')
    write(lk.plan(base, lora, "1x4"), out, overwrite=True)
    assert (out / "tokenizer.json").read_text() == '{"of": "lora"}'
    assert not (out / "vocab.json").exists()


def test_existing_folders(plan, out):
    write(plan, out)
    with pytest.raises(lk.LabkitError, match="exists already; .* overwrite=True"):
        write(plan, out)
    (out / "gradient.png").write_text("")
    write(plan, out, overwrite=True)
    assert (out / "gradient.png").read_bytes()
    (out / "extra").write_text("")
    with pytest.raises(lk.LabkitError, match=r"holds files that labkit did not write \(extra\)"):
        write(plan, out, overwrite=True)
    (out / "extra").unlink()
    write(plan, out, overwrite=True, hashes=False)
    write(plan, out, overwrite=True)
    (out / "receipt.json").unlink()
    with pytest.raises(lk.LabkitError, match="was not made by labkit"):
        write(plan, out, overwrite=True)
    assert (out / "config.json").exists()


def test_targets_that_would_hurt(plan, tiny_base, tiny_adapter):
    for target in (tiny_base, tiny_base / "x", tiny_base.parent):
        with pytest.raises(lk.LabkitError, match="the base is never written to"):
            write(plan, target, overwrite=True)
    with pytest.raises(lk.LabkitError, match="would replace the adapter"):
        write(plan, tiny_adapter, overwrite=True)
    with pytest.raises(lk.LabkitError, match="is no folder; make it first"):
        write(plan, Path("/nowhere/at/all"))


@pytest.mark.parametrize("inside", [".", "onnx", "onnx/original"])
def test_a_base_is_not_written_to_through_another_name(tiny_base, tiny_adapter, tmp_path, inside):
    base, mounted = tmp_path / "base", tmp_path / "mounted"
    shutil.copytree(tiny_base, base)
    (base / "onnx" / "original").mkdir(parents=True)
    mounted.mkdir()
    command = ["mount", "--bind", base / inside, mounted]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("no mounts here")
    try:
        plan = lk.plan(base, tiny_adapter, "1x4")
        for target in (mounted, mounted / "out"):
            with pytest.raises(lk.LabkitError, match="the base is never written to"):
                write(plan, target, overwrite=True)
    finally:
        subprocess.run(["umount", mounted], check=True)


def test_numbers_of_the_base_that_are_none_are_said(tmp_path, tiny_adapter, out):
    from safetensors.torch import load_file, save_file

    base = make_base(tmp_path / "base", shard="1GB")
    stored = load_file(base / "model.safetensors")
    # The last is in a tensor that does not change.
    for layer, value in ((1, float("nan")), (2, float("inf")), (3, float("-inf")), (0, 1e30)):
        stored[f"model.layers.{layer}.mlp.up_proj.weight"][3, :2] = value
    stored["model.norm.weight"][0] = float("nan")
    save_file(stored, base / "model.safetensors", metadata={"format": "pt"})
    receipt = write(lk.plan(base, tiny_adapter, "1x4"), out)
    assert "base holds no tokenizer" in receipt.notes[0]
    assert receipt.notes[1:] == (
        "6 numbers of the base are NaN or infinite, and stay so (3 of the tensors that change, "
        "such as 'model.layers.1.mlp.up_proj.weight'); get the base again if it should be whole",
    )
    merged = load_file(out / "model.safetensors")["model.layers.2.mlp.up_proj.weight"]
    assert int((~merged.isfinite()).sum()) == 2
    assert lk.verify(out, progress=False)


def test_too_little_disk_is_refused(plan, out, monkeypatch):
    usage = shutil.disk_usage(out.parent)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(lk.LabkitError, match=r"the merge writes .* GB, and .* has 0.00 GB free"):
        write(plan, out)
    assert os.listdir(out.parent) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_merge_leaves_nothing(plan, out, monkeypatch, error):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(labkit.writing.engine.Engine, "merge", fail)
    expected = lk.LabkitError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        write(plan, out)
    if expected is lk.LabkitError:
        assert "the disk became full" in str(caught.value)
    assert os.listdir(out.parent) == []


def test_an_interrupted_merge_does_not_wait_for_ever_for_its_picture(plan, out, monkeypatch):
    """An interrupted import can leave the thread that draws waiting for a lock that nobody has."""
    ended = threading.Event()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(labkit.writing.write, "SECONDS_TO_DRAW", 0.05)
    monkeypatch.setattr(labkit.writing.write, "picture_of", lambda _: ended.wait())
    monkeypatch.setattr(labkit.writing.engine.Engine, "merge", interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            write(plan, out)
    finally:
        ended.set()
    assert os.listdir(out.parent) == []


def test_a_base_that_changes_meanwhile_is_noticed(tiny_base, tiny_adapter, tmp_path, out):
    base = shutil.copytree(tiny_base, tmp_path / "base")
    plan = lk.plan(base, tiny_adapter, "1x4")
    os.utime(plan.base.files[0].path, ns=(1, 1))
    with pytest.raises(lk.LabkitError, match="was changed while labkit worked with it"):
        write(plan, out)
    assert os.listdir(tmp_path) == ["base"]


def test_what_a_killed_merge_left_is_cleaned(plan, out):
    left = out.parent / ".merged.labkit-0badcafe"
    left.mkdir()
    (left / MARK).touch()
    (left / "model.safetensors").write_text("half")
    write(plan, out)
    assert os.listdir(out.parent) == ["merged"]


def test_devices(plan, out):
    with pytest.raises(lk.LabkitError, match="the device 'tpu' is unknown"):
        write(plan, out, device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(lk.LabkitError, match="there is no CUDA device here"):
            write(plan, out, device="cuda")
