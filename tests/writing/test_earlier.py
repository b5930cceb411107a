"""A merge that takes over from an earlier one has, byte for byte, the bytes of a whole merge."""

import json
import os
import random
import re
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import labkit as lk
import labkit.files.direct_io
import labkit.writing.engine
import labkit.writing.layout
import labkit.writing.verification
import labkit.writing.write
from labkit.files.direct_io import hash_file
from labkit.merging.matching import Change
from tests.tiny import make_adapter, make_base

MADE = ("receipt.json", "gradient.png")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(labkit.writing.write, "picture_of", lambda plan: b"a picture")
    monkeypatch.setattr(labkit.writing.layout, "PIECE_BYTES", 4096)
    monkeypatch.setitem(labkit.writing.layout.MERGE_BYTES, "cpu", 4096)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A base in four shards, two LoRAs (one with DoRA and a saved module), and a full model."""
    folder = tmp_path_factory.mktemp("sources")
    base = make_base(folder / "base", shard="30KB")
    plain = make_adapter(folder / "plain", base, target_modules=["q_proj", "down_proj"])
    other = make_adapter(folder / "other", base, use_dora=True, target_modules=["v_proj"],
                         modules_to_save=["embed_tokens"])  # fmt: skip
    lk.plan(base, plain, [1, 0.5, 0.25, 1]).write(folder / "model", device="cpu", progress=False)
    model = folder / "model"
    (model / "receipt.json").unlink()
    return base, plain, other, model


def write(plan, out, **options):
    out.parent.mkdir(exist_ok=True)
    return plan.write(out, **{"device": "cpu", "progress": False, **options})


def of_model(folder):
    """All files but those that say when and how."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name not in MADE}


def without_times(receipt):
    content = receipt.to_json()
    for key in ("created", "seconds", "taken_over"):
        content.pop(key, None)
    return content


def computed(monkeypatch):
    """Note the tensors of which a change is made."""
    names = []
    update = Change.update

    def noted(change, device):
        names.append(change.tensor.name)
        return update(change, device)

    monkeypatch.setattr(Change, "update", noted)
    return names


def recipe_of(dice, sources, parts):
    base, *added = sources
    terms = [lk.Term(added[number], weights) for number, weights in parts["terms"]]
    return lk.Recipe(base, terms, parts["rest"], parts["dtype"], method=parts["method"],
                     untie=parts["untie"])  # fmt: skip


METHODS = ["sum", {"ties": {"density": 0.5}}, {"dare": {"density": 0.5, "seed": 3}}]


def changed(dice, parts):
    """The same recipe with something else in it, or with nothing."""
    parts = {**parts, "terms": [(number, list(weights)) for number, weights in parts["terms"]]}
    for _ in range(dice.choice([0, 1, 1, 2])):
        kind = dice.choice(["weight", "weight", "weight", "rest", "dtype", "method", "term"])
        if kind == "weight":
            dice.choice(parts["terms"])[1][dice.randrange(4)] = dice.choice([0, 0.5, 1, -0.25])
        elif kind == "term":
            parts["terms"].append((dice.choice([0, 2]), [dice.choice([0, 0.5, 1])] * 4))
            dice.shuffle(parts["terms"])
        elif kind == "rest":
            parts["rest"] = dice.choice([0.0, 0.5, 1.0])
        elif kind == "dtype":
            parts["dtype"] = dice.choice(["auto", "float32"])
        else:
            parts["method"] = dice.choice(METHODS)
    return parts


@pytest.mark.parametrize("seed", range(12))
def test_random_changes_of_a_recipe(sources, tmp_path, monkeypatch, seed):
    dice = random.Random(seed)
    first = {
        "terms": [(n, [dice.choice([0, 0.5, 1, 0.3]) for _ in range(4)]) for n in (0, 1)],
        "rest": 0.5,
        "dtype": "auto",
        "method": METHODS[seed % 3],
        "untie": True,
    }
    write(lk.plan(recipe_of(dice, sources, first)), tmp_path / "first")
    plan = lk.plan(recipe_of(dice, sources, changed(dice, first)))
    whole = write(plan, tmp_path / "a" / "merged")
    names = computed(monkeypatch)
    link = seed % 2 == 0
    mine = write(plan, tmp_path / "b" / "merged", reuse=tmp_path / "first", link=link)
    assert of_model(tmp_path / "b" / "merged") == of_model(tmp_path / "a" / "merged")
    taken = set(mine.taken_over.tensors)
    assert set(names) == plan.changes.keys() - taken
    if not link:
        assert without_times(mine) == without_times(whole)
    # And one more, of the one that took over.
    third = write(plan, tmp_path / "c" / "merged", reuse=tmp_path / "b" / "merged")
    assert set(third.taken_over.tensors) == plan.changes.keys()
    assert of_model(tmp_path / "c" / "merged") == of_model(tmp_path / "a" / "merged")


HALF = {"ties": {"density": 0.5}}


@pytest.mark.parametrize(
    ("first", "weights", "second", "others"),
    [
        ("sum", 1, "linear", 1),
        ("sum", 1, HALF, 1),
        (HALF, 1, {"ties": {"density": 0.25}}, 1),
        ({"dare": {"seed": 1}}, 1, {"dare": {"seed": 2}}, 1),
        # The divisor counts every term, also where a tensor is changed by one alone.
        ("linear", 1, "linear", 0.5),
    ],
)
def test_nothing_is_taken_over_of_another_method(sources, tmp_path, first, weights, second, others):
    base, plain, other, _ = sources

    def plan(method, weight):
        terms = [lk.Term(plain, "1x4"), lk.Term(other, [weight] * 4)]
        return lk.plan(lk.Recipe(base, terms, 0.0, method=method))

    write(plan(first, weights), tmp_path / "first")
    receipt = write(plan(second, others), tmp_path / "second", reuse=tmp_path / "first")
    assert not receipt.taken_over.tensors
    lk.verify(tmp_path / "second", progress=False)


@pytest.fixture
def earlier(sources, tmp_path):
    base, plain, *_ = sources
    plan = lk.plan(base, plain, [1, 0.5, 0.25, 1])
    write(plan, tmp_path / "earlier")
    return tmp_path / "earlier"


@pytest.fixture
def plan(sources):
    base, plain, *_ = sources
    return lk.plan(base, plain, [1, 0.5, 0.25, 0.75])


def layers_of(names):
    return {int(name.split(".layers.")[1].split(".")[0]) for name in names}


def test_only_the_layer_that_changes_is_computed(plan, earlier, tmp_path, monkeypatch):
    names = computed(monkeypatch)
    receipt = write(plan, tmp_path / "merged", reuse=earlier)
    assert layers_of(names) == {3}
    assert layers_of(receipt.taken_over.tensors) == {0, 1, 2}
    said = json.loads((tmp_path / "merged" / "receipt.json").read_text())["taken_over"]
    assert said == {
        "from": "earlier", "tensors": list(receipt.taken_over.tensors), "linked_files": [],
    }  # fmt: skip
    assert f"6 of the 8 changed tensors, from {earlier}" in str(receipt)
    lk.verify(tmp_path / "merged", progress=False)


def test_whole_files_are_linked_if_asked(plan, earlier, tmp_path):
    receipt = write(plan, tmp_path / "merged", reuse=earlier, link=True)
    assert receipt.taken_over.linked
    for path in (tmp_path / "merged").glob("*.safetensors"):
        shared = path.stat().st_ino == (earlier / path.name).stat().st_ino
        assert shared == (path.name in receipt.taken_over.linked + receipt.linked), path.name
    assert "shared with that folder" in str(receipt)
    lk.verify(tmp_path / "merged", progress=False)


def test_a_merge_can_take_the_place_of_the_one_it_takes_over_from(plan, earlier, tmp_path):
    write(plan, tmp_path / "merged")
    receipt = write(plan, earlier, reuse=earlier, overwrite=True, link=True)
    assert receipt.taken_over.tensors
    weights = {p.name: p.read_bytes() for p in earlier.glob("*.safetensors")}
    assert weights == {p.name: p.read_bytes() for p in (tmp_path / "merged").glob("*.safetensors")}


def change_a_byte(path, position):
    """Change a byte by hand, and put the file's times back."""
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)
        file.seek(position)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("link", [False, True])
def test_a_file_changed_by_hand_is_computed_anew(plan, earlier, tmp_path, link):
    write(plan, tmp_path / "a" / "merged")
    told = []
    unproven = {}
    for name in (name for name in plan.changes if "layers.3." not in name):
        tensor = lk.Checkpoint(earlier).tensors[name]
        unproven.setdefault(tensor.file, tensor.start)
    for path, position in unproven.items():
        change_a_byte(path, position)
    receipt = write(plan, tmp_path / "b" / "merged", reuse=earlier, link=link,
                    progress=lambda done, total: told.append(done / total))  # fmt: skip
    assert of_model(tmp_path / "b" / "merged") == of_model(tmp_path / "a" / "merged")
    assert not receipt.taken_over.tensors
    notes = [note for note in receipt.notes if "computed anew" in note]
    assert len(notes) == len(unproven) == 3
    assert re.fullmatch(
        "model-.*safetensors is computed anew: .*earlier/model-.*safetensors has other bytes than "
        "when the earlier merge was written",
        notes[0],
    )
    assert told[-1] == 1


def test_a_base_with_other_numbers_is_merged_anew(plan, earlier, sources, tmp_path):
    base, plain, *_ = sources
    copy = tmp_path / "copy" / "base"
    shutil.copytree(base, copy)
    paths = sorted(copy.glob("*.safetensors"))
    change_a_byte(paths[1], paths[1].stat().st_size - 1)
    same = write(lk.plan(base, plain, [1, 0.5, 0.25, 1]), tmp_path / "same", reuse=earlier)
    other = lk.plan(copy, plain, [1, 0.5, 0.25, 1])
    whole = write(other, tmp_path / "a" / "merged")
    mine = write(other, tmp_path / "b" / "merged", reuse=earlier)
    assert of_model(tmp_path / "b" / "merged") == of_model(tmp_path / "a" / "merged")
    assert without_times(mine)["files_written"] == without_times(whole)["files_written"]
    [note] = [note for note in mine.notes if "computed anew" in note]
    assert str(paths[1]) in note
    assert 0 < len(mine.taken_over.tensors) < len(same.taken_over.tensors)


def test_an_adapter_with_other_numbers_is_merged_anew(earlier, sources, tmp_path):
    base, plain, *_ = sources
    other = tmp_path / "plain"
    shutil.copytree(plain, other)
    tensors = load_file(other / "adapter_model.safetensors")
    name = next(name for name in tensors if "layers.2" in name)
    tensors[name][0, 0] += 1
    save_file(tensors, other / "adapter_model.safetensors", metadata={"format": "pt"})
    mine = write(lk.plan(base, other, [1, 0.5, 0.25, 1]), tmp_path / "merged", reuse=earlier)
    assert not mine.taken_over.tensors
    lk.verify(tmp_path / "merged", progress=False)


def test_an_alpha_changes_what_a_tensor_is_made_of(earlier, sources, tmp_path):
    base, plain, *_ = sources
    other = tmp_path / "plain"
    shutil.copytree(plain, other)
    config = json.loads((other / "adapter_config.json").read_text())
    config["lora_alpha"] *= 2
    (other / "adapter_config.json").write_text(json.dumps(config))
    mine = write(lk.plan(base, other, [1, 0.5, 0.25, 1]), tmp_path / "merged", reuse=earlier)
    assert not mine.taken_over.tensors


def test_a_base_with_a_number_that_is_none_is_counted_again(sources, tmp_path):
    base, plain, *_ = sources
    copy = tmp_path / "base"
    shutil.copytree(base, copy)
    path = next(p for p in sorted(copy.glob("*.safetensors")) if "model.layers.1.self_attn.q_proj"
                in "".join(load_file(p)))  # fmt: skip
    tensors = load_file(path)
    tensors["model.layers.1.self_attn.q_proj.weight"][0, 0] = np.nan
    save_file(tensors, path, metadata={"format": "pt"})
    plan = lk.plan(copy, plain, "1x4")
    first = write(plan, tmp_path / "first")
    again = write(plan, tmp_path / "again", reuse=tmp_path / "first")
    assert [n for n in first.notes if "NaN" in n] == [n for n in again.notes if "NaN" in n] != []
    assert len(again.taken_over.tensors) == 7


def test_blocks_are_shared_where_the_file_system_can(plan, earlier, tmp_path, monkeypatch):
    cloned = []
    copy = labkit.files.direct_io.TargetFile.copy

    def note(target, source, start, count, to):
        cloned.append((source.path.parent.name, count, start == to))
        copy(target, source, start, count, to)

    monkeypatch.setattr(labkit.files.direct_io, "_shares_blocks", lambda *_: True)
    monkeypatch.setattr(labkit.files.direct_io.TargetFile, "copy", note)
    write(plan, tmp_path / "merged", reuse=earlier)
    of_earlier = [count for name, count, same in cloned if name == "earlier" and same]
    expected = 0
    for file in plan.base.files:
        changed = [tensor for tensor in file.tensors if tensor.name in plan.changes]
        others = [tensor for tensor in changed if "layers.3." in tensor.name]
        if others:  # tensor by tensor
            expected += sum(tensor.nbytes for tensor in set(changed) - set(others))
        elif changed:  # from the first byte behind the header to the last
            expected += file.size - len(file.header_bytes)
    assert sum(of_earlier) == expected > 0
    lk.verify(tmp_path / "merged", progress=False)


def test_runs_are_cut_where_blocks_of_a_disk_are(plan, monkeypatch):
    monkeypatch.setattr(labkit.writing.layout, "BLOCK_BYTES", 512)
    files = labkit.writing.layout.output_files(plan, "cpu")
    pieces = labkit.writing.layout.taken_over(files[0].pieces, frozenset(), whole=True)
    assert all(piece.earlier and piece.tensor is None for piece in pieces)
    ends = [piece.target + piece.nbytes for piece in pieces]
    assert [piece.target for piece in pieces] == [len(files[0].header), *ends[:-1]]
    assert [piece.source for piece in pieces] == [piece.target for piece in pieces]
    assert ends[0] % 512 == 0
    assert pieces[0].nbytes < 512
    assert all(end % 4096 == 0 for end in ends[1:-1])
    assert ends[-1] == files[0].size


def test_an_interruption_leaves_nothing(plan, earlier, tmp_path, monkeypatch):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(plan, tmp_path / "merged", reuse=earlier, progress=stop)
    assert sorted(os.listdir(tmp_path)) == ["earlier"]


def test_an_earlier_file_that_changes_meanwhile(plan, earlier, tmp_path, monkeypatch):
    stream = labkit.writing.engine.ModelWriter._stream

    def then_change(writer, file):
        stream(writer, file)
        if file.earlier:
            change_a_byte(file.earlier.file.path, file.size - 1)
            os.utime(file.earlier.file.path)

    monkeypatch.setattr(labkit.writing.engine.ModelWriter, "_stream", then_change)
    with pytest.raises(lk.LabkitError, match="was changed while labkit worked with it"):
        write(plan, tmp_path / "merged", reuse=earlier)
    assert sorted(os.listdir(tmp_path)) == ["earlier"]


def test_what_cannot_be_taken_over(plan, earlier, tmp_path, sources):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(lk.LabkitError, match="empty.* holds no receipt.json; name the folder of a"):
        write(plan, tmp_path / "merged", reuse=empty)
    with pytest.raises(
        lk.LabkitError, match=r"proven by SHA-256 sums; leave out hashes=False, or reuse="
    ):
        write(plan, tmp_path / "merged", reuse=earlier, hashes=False)
    write(plan, tmp_path / "unproven", hashes=False)
    message = "does not say what each tensor was made of, so that nothing can be taken over from it"
    with pytest.raises(lk.LabkitError, match=message):
        write(plan, tmp_path / "merged", reuse=tmp_path / "unproven")
    receipt = json.loads((earlier / "receipt.json").read_text())
    for key, value in (("made_of", {"base": []}), ("tensors", [{"name": "a"}]), ("tensors", 3)):
        (earlier / "receipt.json").write_text(json.dumps({**receipt, key: value}))
        with pytest.raises(lk.LabkitError, match=message):
            write(plan, tmp_path / "merged", reuse=earlier)
    assert not (tmp_path / "merged").exists()


def test_a_tensor_that_the_receipt_does_not_describe_is_computed(plan, earlier, tmp_path):
    receipt = json.loads((earlier / "receipt.json").read_text())
    gone = receipt["tensors"].pop(0)["name"]
    (earlier / "receipt.json").write_text(json.dumps(receipt))
    mine = write(plan, tmp_path / "merged", reuse=earlier)
    assert gone not in mine.taken_over.tensors
    assert len(mine.taken_over.tensors) == 5
    lk.verify(tmp_path / "merged", progress=False)


def test_another_dtype_takes_nothing_over(earlier, sources, tmp_path):
    base, plain, *_ = sources
    other = lk.plan(base, plain, [1, 0.5, 0.25, 1], dtype="float16")
    assert not write(other, tmp_path / "merged", reuse=earlier).taken_over.tensors
    lk.verify(tmp_path / "merged", progress=False)


def test_a_sum_is_taken_once(tmp_path, monkeypatch):
    from labkit.writing import earlier

    (tmp_path / "a").write_bytes(b"abc")
    asked = []
    monkeypatch.setattr(earlier, "hash_file", lambda p: (asked.append(p), hash_file(p))[1])
    sums = earlier.Sums()
    assert sums.of(tmp_path / "a") == sums.of(tmp_path / "a") == hash_file(tmp_path / "a")
    assert asked == [tmp_path / "a"]
