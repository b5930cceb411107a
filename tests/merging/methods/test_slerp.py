import re
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import labkit as lk
from tests.architectures import make_architecture
from tests.merging.methods.dense import (
    assert_merged,
    deltas_of,
    layer_of,
    merge,
    numbers_of,
)

WEIGHTS = [0.25, 1.0, 0.6]


def on_the_arc(old, new, t):
    """Shoemake's formula by unit vectors: a turn of the first towards the part of the second that
    is at right angles to it, which is another way to write it."""
    one, other = old.reshape(-1), new.reshape(-1)
    lengths = np.linalg.norm(one), np.linalg.norm(other)
    if min(lengths) == 0 or abs(one @ other / np.prod(lengths)) > 0.9995:
        return (1 - t) * old + t * new
    u, v = one / lengths[0], other / lengths[1]
    angle = 2 * np.arctan2(np.linalg.norm(u - v), np.linalg.norm(u + v))
    across = (v - (u @ v) * u) / np.sin(angle)
    # Weights of the unit vectors u and v in cos(tθ)·u + sin(tθ)·across:
    of_v = np.sin(t * angle) / np.sin(angle)
    of_u = np.cos(t * angle) - np.sin(t * angle) * (u @ v) / np.sin(angle)
    assert across @ u == pytest.approx(0, abs=1e-9)
    return of_u * old + of_v * new


def another(base, folder):
    """A model whose matrices lie at a wide angle to the base's."""
    shutil.copytree(base, folder)
    for path in folder.glob("*.safetensors"):
        tensors = {n: 0.7 * v + 0.4 * v.roll(1, 0) for n, v in load_file(path).items()}
        save_file(tensors, path)
    return folder


def test_of_a_base_and_a_model_far_apart(tmp_path):
    for name in ("llama", "gpt2"):
        base = make_architecture(tmp_path / name / "base", name)
        other = another(base, tmp_path / name / "other")
        old, new = numbers_of(base), numbers_of(other)
        t = {n: WEIGHTS[layer_of(n)] if ".layers." in n or ".h." in n or n[:2] == "h." else 0.4
             for n in old}  # fmt: skip
        expected = {n: on_the_arc(old[n], new[n], t[n]) - old[n] for n in old}
        terms = [(lk.Checkpoint(other), WEIGHTS)]
        found = merge(base, terms, "slerp", tmp_path / name / "out", rest=0.4)
        assert_merged(found, old, expected)
        bent = [n for n in old if not np.allclose(expected[n], t[n] * (new[n] - old[n]))]
        assert bent  # some are no straight lines


def test_of_a_lora_it_is_a_straight_line_where_nearly_parallel(pair, tmp_path):
    base, adapter, _ = pair
    old = numbers_of(base)
    deltas = deltas_of(adapter, old)
    expected = {
        name: on_the_arc(old[name], old[name] + delta, WEIGHTS[layer_of(name)]) - old[name]
        for name, delta in deltas.items()
    }
    assert_merged(merge(base, [(adapter, WEIGHTS)], "slerp", tmp_path / "out"), old, expected)


def test_more_than_two_models_are_refused(llamas):
    base, *adapters = llamas
    terms = [lk.Term(adapter, lk.Gradient(WEIGHTS)) for adapter in adapters]
    message = (
        "tensor 'model.layers.0.self_attn.k_proj.weight' in layer 0: the method slerp goes from "
        "the base to one model, and the recipe has 2 terms; leave one, or merge with the method "
        "linear"
    )
    with pytest.raises(lk.LabkitError, match=re.escape(message)):
        lk.plan(lk.Recipe(lk.Checkpoint(base), terms, method="slerp"))
