"""Layers whose outputs stand in for them: the same logits, whatever the architecture."""

import pytest
import torch

from labkit.inference.layer_outputs import LayerOutputs
from tests.architectures import ARCHITECTURES, make_architecture


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3", "gpt2", "falcon", "mixtral", "opt"])
def test_a_pass_above_what_was_kept_is_the_whole_pass(tmp_path, name):
    from transformers import AutoModelForCausalLM

    assert name in ARCHITECTURES
    folder = make_architecture(tmp_path / name, name)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    stacks = [one for one in model.modules() if isinstance(one, torch.nn.ModuleList)]
    (layers,) = [list(one) for one in stacks if len(one) == 3][:1]
    tokens = torch.tensor([[5, 9, 11, 7], [3, 4, 0, 0]])
    given = {"input_ids": tokens, "attention_mask": tokens.clamp(max=1), "use_cache": False}
    outputs = LayerOutputs(layers)
    with torch.inference_mode():
        with outputs.kept():
            before = model(**given).logits
        # The last layer changes, in a matrix that every architecture has.
        matrix = max(layers[2].parameters(), key=lambda one: one.numel() * (one.dim() == 2))
        matrix.mul_(1.5)
        whole = model(**given).logits
        # Below, the model could give nothing that is right.
        matrix_below = next(layers[0].parameters())
        kept = matrix_below.clone()
        matrix_below.fill_(float("nan"))
        with outputs.standing_in(2):
            above = model(**given).logits
        matrix_below.copy_(kept)
        assert torch.equal(model(**given).logits, whole)
    assert torch.equal(above, whole)
    assert not torch.allclose(before, whole)
    assert not any("forward" in vars(layer) for layer in layers)


def test_layers_are_themselves_again_after_a_failure():
    layers = [torch.nn.Linear(2, 2) for _ in range(2)]
    outputs = LayerOutputs(layers)

    def one_pass(values):
        for layer in layers:
            values = layer(values)
        return values

    values = torch.ones(1, 2)
    with outputs.kept():
        whole = one_pass(values)
    with outputs.standing_in(2):
        assert torch.equal(one_pass(torch.zeros(1, 2)), whole)
    with pytest.raises(ZeroDivisionError), outputs.standing_in(2):
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), outputs.kept():
        raise ZeroDivisionError
    assert not torch.equal(one_pass(torch.zeros(1, 2)), whole)
    assert not any(layer._forward_hooks for layer in layers)
