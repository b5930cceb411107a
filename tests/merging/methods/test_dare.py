import math
import re

import numpy as np
import pytest

import labkit as lk
from labkit.merging.methods.dare import Dare, Mask, key_of, random_bits
from tests.merging.methods.dense import assert_merged, deltas_of, layer_of, merge, numbers_of

FIRST, SECOND = [1.0, 0.25, 0.0], [0.5, -0.75, 2.0]
ALL = (1 << 64) - 1


def splitmix64(key):
    """Vigna's splitmix64.c, in whole numbers."""
    state = key
    while True:
        state = (state + 0x9E3779B97F4A7C15) & ALL
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & ALL
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & ALL
        yield z ^ (z >> 31)


def test_random_bits_are_splitmixs():
    # The first outputs for the seed 1234567, as published with the generator's test vectors.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert random_bits(1234567, np.arange(3)).view(np.uint64).tolist() == published
    numbers = splitmix64(ALL - 5)
    expected = [next(numbers) for _ in range(50)]
    assert random_bits(ALL - 5, np.arange(50)).view(np.uint64).tolist() == expected
    order = np.array([[40, 3], [17, 49]])
    assert random_bits(ALL - 5, order).view(np.uint64).tolist() == [
        [expected[n] for n in row] for row in order
    ]


def fixed_mask(shape, density, seed, name, term):
    """Which elements stay, by another generator's code and Python's whole numbers."""
    numbers = splitmix64(key_of(seed, name, term))
    kept = [next(numbers) / 2**64 < density for _ in range(math.prod(shape))]
    return np.array(kept).reshape(shape)


@pytest.mark.parametrize("rescale", ["l1", "density", "none"])
def test_what_stays_is_rescaled(pair, tmp_path, rescale):
    base, *adapters = pair
    old = numbers_of(base)
    both = [deltas_of(adapter, old) for adapter in adapters]
    expected = {}
    for name in both[0]:
        change = np.zeros_like(old[name])
        for term, (deltas, gradient) in enumerate(zip(both, (FIRST, SECOND), strict=True)):
            weight = gradient[layer_of(name)]
            if name in deltas and weight:
                kept = deltas[name] * fixed_mask(change.shape, 0.3, 7, name, term)
                by = {"none": 1, "density": 1 / 0.3,
                      "l1": np.abs(deltas[name]).sum() / np.abs(kept).sum()}  # fmt: skip
                change += weight * kept * by[rescale]
        if change.any():
            expected[name] = change
    terms = [(adapters[0], FIRST), (adapters[1], SECOND)]
    method = {"dare": {"density": 0.3, "rescale": rescale, "seed": 7}}
    assert_merged(merge(base, terms, method, tmp_path / "out"), old, expected)


def test_keys_differ_by_seed_tensor_and_term():
    keys = {key_of(s, n, t) for s in (0, 1, 10) for n in ("a", "b", "0a") for t in (0, 1, 11)}
    assert len(keys) == 27


def test_the_share_that_stays_is_the_density():
    positions = np.arange(100_000)
    for density in (0.1, 0.5, 1.0):
        mean = Mask(density, key_of(0, "tensor", 0)).keeps(positions).mean()
        assert -mean == pytest.approx(density, abs=0.005)  # three standard deviations


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rescale": "l2"}, "rescale is 'l2'; expected one of l1, density, none"),
        ({"seed": -1}, "seed is -1; expected a whole number from 0 on"),
        ({"seed": 0.5}, "seed is 0.5; expected a whole number from 0 on"),
        ({"seed": True}, "seed is True; expected a whole number from 0 on"),
        ({"density": 0.0}, "density is 0.0; expected a share above 0 and at most 1"),
    ],
)
def test_wrong_parameters(parameters, message):
    with pytest.raises(lk.LabkitError, match=re.escape(message)):
        Dare(**parameters)
