"""Next tokens and their divergences, against plain transformers and PEFT."""

from __future__ import annotations

import math

import pytest
import torch

from labkit.errors import LabkitError
from labkit.gradients.gradient import Gradient
from labkit.inference.live_model import free
from labkit.probing.next_token import compare_next_token, kl_divergence

PROMPT = "In the beginning"


def logs(*shares: float) -> torch.Tensor:
    return torch.tensor(shares, dtype=torch.float64).log()


def test_divergence():
    assert kl_divergence(logs(0.5, 0.5), logs(0.5, 0.5)) == 0
    assert kl_divergence(logs(1.0, 0.0), logs(0.5, 0.5)) == pytest.approx(0.6931, abs=1e-4)


def test_a_divergence_has_a_direction():
    few, many = logs(0.9, 0.1), logs(0.5, 0.5)
    assert kl_divergence(few, many) == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2))
    assert kl_divergence(many, few) == pytest.approx(0.5 * math.log(1 / 1.8) + 0.5 * math.log(5))
    assert kl_divergence(logs(0.5, 0.5), logs(1.0, 0.0)) == math.inf
    assert kl_divergence(logs(1.0, 0.0), logs(1.0, 0.0)) == 0


def test_a_divergence_is_never_below_zero():
    for seed in range(50):
        scores = torch.randn(1000, dtype=torch.float64, generator=torch.manual_seed(seed))
        near = scores + 1e-15 * torch.randn(1000, dtype=torch.float64)
        assert kl_divergence(scores.log_softmax(0), near.log_softmax(0)) >= 0


def test_it_is_what_three_plain_models_expect(loud, plain_models):
    merge = loud.mix(Gradient.parse("0,0.5,1,-0.5"))
    tokens = loud.tokens(PROMPT)
    with torch.inference_mode():
        logits = {name: model(tokens).logits[0, -1] for name, model in plain_models.items()}
    plain = {name: each.double().log_softmax(-1) for name, each in logits.items()}
    found = compare_next_token(loud, PROMPT, merge)

    def divergence(first: str, second: str) -> float:
        # PyTorch's own takes the arguments the other way round.
        return torch.nn.functional.kl_div(
            plain[second], plain[first], reduction="sum", log_target=True
        ).item()

    for value, other in ((found.from_base, "base"), (found.from_full, "full")):
        assert value == pytest.approx(divergence("merged", other), rel=1e-3)
        assert value != pytest.approx(divergence(other, "merged"), rel=1e-2)
    assert found.from_base != pytest.approx(found.from_full, rel=0.1)

    ids = {loud.tokenizer.decode([token]): token for token in range(97)}
    for text, shares in found.rows:
        expected = [plain[name][ids[text]].exp().item() for name in ("base", "merged", "full")]
        assert list(shares) == pytest.approx(expected, rel=1e-3)
        assert expected[0] != pytest.approx(expected[1], rel=1e-2)
        assert expected[2] != pytest.approx(expected[1], rel=1e-2)


def test_the_most_probable_tokens_of_each_are_there(loud, plain_models):
    found = compare_next_token(loud, PROMPT, loud.mix(Gradient.parse("0,0.5,1,-0.5")))
    listed = [text for text, _ in found.rows]
    assert len(listed) == len(set(listed)) <= 9
    merged = [shares[1] for _, shares in found.rows]
    assert merged == sorted(merged, reverse=True)
    tokens = loud.tokens(PROMPT)
    with torch.inference_mode():
        best = {
            name: model(tokens).logits[0, -1].topk(4).indices.tolist()
            for name, model in plain_models.items()
        }
    # All of the merge's and the base's; of the full LoRA's as many as there is room for.
    for token in (*best["merged"], *best["base"]):
        assert loud.tokenizer.decode([token]) in listed
    assert loud.tokenizer.decode(best["full"][:1]) in listed


def test_what_cannot_be_compared_is_said(loud):
    merge = loud.mix(1)
    free()
    with pytest.raises(LabkitError, match="this model was freed; call lk.live"):
        compare_next_token(loud, PROMPT, merge)
