"""Matrices of layer weights and the patterns that say them, against what a plan does."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import labkit as lk
from labkit.errors import LabkitError
from labkit.merging.module_rows import (
    ModuleKind,
    mean_weight,
    module_kinds,
    patterns_of,
    weights_by_kind,
)
from labkit.merging.recipe import Term, pattern_matches
from tests.tiny import ALL_LINEAR

LLAMA = [
    *(f"self_attn.{one}_proj" for one in "qkvo"),
    *(f"mlp.{one}_proj" for one in ("gate", "up", "down")),
]
GPT2 = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
MOE = [*LLAMA[:4], "mlp.gate", "mlp.shared_expert.down_proj", "mlp.experts.*.down_proj"]
MAMBA = ["mixer.in_proj", "mixer.norm", "norm"]
VALUES = st.sampled_from([0.0, 0.5, 1.0, -1.0])


def kinds_of(paths, layers=3):
    """Kinds as `module_kinds` gives them, without files."""
    made = []
    for path in paths:
        names = [f"model.layers.{layer}.{path}".replace("*", "1") for layer in range(layers)]
        modules = tuple(zip(names, range(layers), strict=True))
        ends = [".".join(path.split(".")[-n:]) for n in range(1, path.count(".") + 2)]
        others = [f"model.layers.0.{other}".replace("*", "1") for other in paths if other != path]
        name = next(
            (
                end
                for end in ends
                if end[0] != "*" and not any(pattern_matches(end, other) for other in others)
            ),
            path,
        )
        made.append(ModuleKind(name, path, modules))
    return made


@given(st.data())
@settings(max_examples=150)
def test_a_matrix_comes_back_from_its_patterns(data):
    kinds = kinds_of(data.draw(st.sampled_from([LLAMA, GPT2, MOE, MAMBA])))
    row = st.lists(VALUES, min_size=3, max_size=3).map(lk.Gradient)
    few = data.draw(st.lists(row, min_size=1, max_size=3))
    rows = {kind.name: data.draw(st.sampled_from(few)) for kind in kinds}
    weights, weights_for = patterns_of(kinds, rows, data.draw(row))
    for kind in kinds:
        for module, _ in kind.modules:
            # As `Term.pattern_for` has it, written anew: the last pattern counts.
            chosen = [gradient for pattern, gradient in weights_for.items()
                      if pattern_matches(pattern, module)]  # fmt: skip
            assert (chosen or [weights])[-1] == rows[kind.name]
    # Never more patterns than rows that differ from the general gradient, but for the ends of
    # longer names, which have to be written out.
    if "norm" not in rows:
        assert len(weights_for) <= sum(one != weights for one in rows.values())


def test_a_kind_whose_name_ends_another_written_before_it():
    kinds = kinds_of(MAMBA)
    ones, zeros = lk.Gradient.constant(3, 1), lk.Gradient.constant(3, 0)
    rows = {"in_proj": zeros, "mixer.norm": ones, "norm": zeros}
    written = {"in_proj": zeros, "norm": zeros, "mixer.norm": ones}
    assert patterns_of(kinds, rows, ones) == (ones, written)


@given(st.lists(st.lists(VALUES, min_size=4, max_size=4).map(lk.Gradient), min_size=7, max_size=7))
@settings(max_examples=25)
def test_a_plan_has_exactly_the_weights_of_the_matrix(tiny_base, tiny_adapter, matrix):
    base, term = lk.Checkpoint(tiny_base), Term(tiny_adapter, lk.Gradient.constant(4))
    kinds = module_kinds(base, term)
    rows = {kind.name: gradient for kind, gradient in zip(kinds, matrix, strict=True)}
    assert set(rows) == set(ALL_LINEAR)
    painted = Term(term.source, *patterns_of(kinds, rows, term.weights))
    ledger = lk.plan(lk.Recipe(base, [painted])).ledger
    assert len(ledger) == 2 * 7 * 4
    for line in ledger:
        module = line.base_tensor.split(".")[-2]
        assert line.weight == rows[module][line.layer]
    assert weights_by_kind(painted, module_kinds(base, painted)) == rows
    mean = sum(sum(row) for row in matrix) / 28
    assert mean_weight(base, painted) == pytest.approx(mean, abs=1e-12)
    assert mean_weight(base, painted, 1, 2) == pytest.approx(
        sum(row[1] + row[2] for row in matrix) / 14, abs=1e-12
    )


def written(kinds, general, **changed):
    rows = {kind.name: general for kind in kinds} | changed
    weights, weights_for = patterns_of(kinds, rows, general)
    return weights, {pattern: each.runs() for pattern, each in weights_for.items()}


def test_patterns_are_few_and_short():
    llama, zero, one = kinds_of(LLAMA), lk.Gradient([0, 0, 0]), lk.Gradient([1, 1, 1])
    some = lk.Gradient([0, 1, 0])
    assert written(llama, zero) == (zero, {})
    attention = dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), one)
    assert written(llama, zero, **attention) == (zero, {"self_attn": "1x3"})
    mlp = dict.fromkeys(("gate_proj", "up_proj", "down_proj"), some)
    assert written(llama, zero, **attention, **mlp) == (one, {"mlp": "0,1,0"})
    # The last pattern counts: attention but its q_proj.
    assert written(llama, zero, **attention | {"q_proj": some}) == (
        zero, {"self_attn": "1x3", "q_proj": "0,1,0"},
    )  # fmt: skip
    # The gradient of all modules stays as long as some modules have it.
    assert written(llama, zero, **attention, gate_proj=one, up_proj=one) == (
        zero, {"self_attn": "1x3", "up_proj": "1x3", "gate_proj": "1x3"},
    )  # fmt: skip
    gpt2 = kinds_of(GPT2)
    assert [kind.name for kind in gpt2] == ["c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"]
    assert written(gpt2, zero, **{"mlp.c_proj": one}) == (zero, {"mlp.c_proj": "1x3"})
    mamba = kinds_of(MAMBA)
    assert written(mamba, zero, norm=one) == (zero, {"norm": "1x3", "mixer.norm": "0x3"})


def test_rows_of_other_kinds_are_refused():
    zero = lk.Gradient([0, 0, 0])
    with pytest.raises(LabkitError, match="the matrix has rows for q_proj, x; expected one for"):
        patterns_of(kinds_of(LLAMA), {"q_proj": zero, "x": zero}, zero)


def test_a_pattern_of_one_layer_is_a_cell(tiny_base, tiny_adapter):
    base = lk.Checkpoint(tiny_base)
    ramp, other = lk.Gradient([0, 0.25, 0.5, 1]), lk.Gradient([-1, -2, -3, -4])
    term = Term(tiny_adapter, ramp, {"layers.2.mlp.up_proj": other, "self_attn": other})
    rows = weights_by_kind(term, module_kinds(base, term))
    assert rows["up_proj"] == lk.Gradient([0, 0.25, -3, 1])
    assert rows["gate_proj"] == ramp
    assert rows["k_proj"] == other
    kinds = module_kinds(base, term)
    weights, weights_for = patterns_of(kinds, rows, ramp)
    assert weights == ramp
    assert weights_for == {"self_attn": other, "up_proj": rows["up_proj"]}


def test_layers_without_such_a_module_are_known(tiny_base, tmp_path):
    from tests.tiny import make_adapter

    folder = make_adapter(
        tmp_path / "few", tiny_base, target_modules=["q_proj"], layers_to_transform=[1, 3]
    )
    term = Term(folder, lk.Gradient([0, 1, 0, 1]))
    (kind,) = module_kinds(lk.Checkpoint(tiny_base), term)
    assert (kind.name, kind.path, kind.layers) == ("q_proj", "self_attn.q_proj", {1, 3})


def test_experts_are_one_row_unless_they_differ(monkeypatch):
    names = [
        (f"model.layers.{layer}.mlp.experts.{expert}.w1", layer)
        for layer in range(2)
        for expert in range(2)
    ]

    class Term:
        weights = lk.Gradient([0, 1])

        def __init__(self):
            self.weights_for = {}

        def gradient_for(self, module):
            for pattern, gradient in self.weights_for.items():
                if pattern_matches(pattern, module):
                    return gradient
            return self.weights

    monkeypatch.setattr("labkit.merging.module_rows._modules", lambda base, term: names)
    term = Term()
    assert [kind.name for kind in module_kinds(None, term)] == ["w1"]
    term.weights_for = {"experts.1": lk.Gradient([0, 0])}
    kinds = module_kinds(None, term)
    assert [kind.name for kind in kinds] == ["experts.0.w1", "experts.1.w1"]
    rows = weights_by_kind(term, kinds)
    assert rows == {"experts.0.w1": term.weights, "experts.1.w1": lk.Gradient([0, 0])}
    assert patterns_of(kinds, rows, term.weights)[1] == {"experts.1.w1": lk.Gradient([0, 0])}
