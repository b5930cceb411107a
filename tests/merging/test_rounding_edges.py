"""What is rare in a block: one number alone that leaves the range, and a merger's buffers."""

import math

import numpy as np
import pytest

from labkit.deltas.low_rank import LowRank
from labkit.files.floats import ARRAYS, LARGEST, round_once, wide
from labkit.merging.rounding import BLOCK_ELEMENTS, BUFFER_BYTES, BlockMerger
from labkit.merging.rounding_on_device import DeviceMerger

MERGERS = [BlockMerger, lambda: DeviceMerger("cpu")]


def merged(make, base, dtype, update):
    out = np.empty(base.shape, ARRAYS[dtype])
    make().merge(base, dtype, update, 0, dtype, out)
    return wide(out, dtype)


@pytest.mark.parametrize("make", MERGERS)
@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
@pytest.mark.parametrize("sign", [1, -1])
def test_one_infinite_number_alone(make, dtype, sign):
    numbers = np.linspace(-2, 2, 6 * 70).reshape(6, 70)
    numbers[4, 5] = sign * math.inf
    base = round_once(numbers, dtype)
    update = LowRank(np.full((6, 1), 0.25), np.ones((1, 70)))
    expected = wide(round_once(wide(base, dtype) + 0.25, dtype), dtype)
    np.testing.assert_array_equal(merged(make, base, dtype, update), expected)
    assert expected[4, 5] == sign * math.inf


@pytest.mark.parametrize("make", MERGERS)
@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("factor", [1.0, 1.0001, 1.01, 3.0, 1e9])
def test_one_number_alone_that_becomes_too_large(make, dtype, sign, factor):
    base = round_once(np.linspace(-2, 2, 6 * 70).reshape(6, 70), dtype)
    left, right = np.zeros((6, 1)), np.zeros((1, 70))
    left[3, 0], right[0, 9] = sign * factor, LARGEST[dtype]
    exact = wide(base, dtype) + left @ right
    with np.errstate(over="ignore"):
        expected = wide(round_once(exact, dtype), dtype)
    np.testing.assert_array_equal(merged(make, base, dtype, LowRank(left, right)), expected)
    if factor >= 1.01:
        assert expected[3, 9] == sign * math.inf


def test_a_mergers_buffers_are_what_the_forecast_counts():
    found = {}
    for base_dtype in ("F16", "BF16", "F32", "F64"):
        for dtype in ("F16", "BF16", "F32"):
            base = round_once(np.ones((2, BLOCK_ELEMENTS)), base_dtype)
            merger = BlockMerger()
            out = np.empty(base.shape, ARRAYS[dtype])
            merger.merge(base, base_dtype, None, 0, dtype, out)
            found[base_dtype, dtype] = sum(each.nbytes for each in merger._buffers.values())
    assert max(found.values()) == BUFFER_BYTES
    assert BLOCK_ELEMENTS == 131072
