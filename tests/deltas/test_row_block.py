"""One expert's product in its rows of a stack, against the dense matrix."""

import numpy as np
import pytest

from labkit.deltas.low_rank import LowRank
from labkit.deltas.row_block import RowBlock
from tests.deltas.dense import added_by, some


@pytest.mark.parametrize("first", [0, 2, 5])
@pytest.mark.parametrize("start", [0, 1, 2, 3, 4, 6])
def test_it_adds_to_its_own_rows_alone(first, start):
    product = LowRank(some(4, 2), some(2, 3))
    dense = np.zeros((9, 3))
    dense[first : first + 4] = product.dense()
    block = RowBlock(product, first)
    base = some(9, 3)
    for stop in range(start + 1, 10):
        found = added_by(block, base[start:stop], start)
        np.testing.assert_allclose(found, dense[start:stop], atol=1e-12)
    np.testing.assert_allclose(added_by(block.times(-2.0), base), -2 * dense, atol=1e-12)
    assert block.norm() == pytest.approx(np.linalg.norm(dense), rel=1e-12)
