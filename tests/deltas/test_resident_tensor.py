import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from labkit.deltas.resident_tensor import ResidentTensor
from labkit.errors import LabkitError
from labkit.files.tensor_file import open_tensor_file


@pytest.fixture(params=["bfloat16", "float16", "float32", "float64"])
def tensor(request, tmp_path):
    values = torch.randn(7, 5, dtype=torch.float64).to(getattr(torch, request.param))
    save_file({"w": values}, tmp_path / "x.safetensors")
    return open_tensor_file(tmp_path / "x.safetensors").tensors[0]


def test_its_rows_are_the_files(tensor):
    resident = ResidentTensor.of(tensor, "cpu")
    assert resident.matrix_shape == (7, 5)
    for start, stop in ((0, 7), (2, 5), (5, 9), (8, 10)):
        rows = resident.read_rows(start, stop)
        assert rows.dtype == torch.float64
        np.testing.assert_array_equal(rows.numpy(), tensor.read_rows(start, stop))
    blocks = [(start, rows.tolist()) for start, rows in resident.blocks(11)]
    assert blocks == [(start, rows.tolist()) for start, rows in tensor.blocks(11)]
    assert resident.values.element_size() == tensor.nbytes // 35  # as the file has them
    assert resident.zeros(2).tolist() == [[0.0] * 5] * 2


def test_it_is_read_once_and_not_before_it_is_needed(tensor):
    resident = ResidentTensor.of(tensor, "cpu")
    assert resident.zeros(3).shape == (3, 5)
    first = resident.values
    tensor.file.unlink()
    assert resident.values is first
    with pytest.raises(LabkitError, match="cannot read"):
        ResidentTensor.of(tensor, "cpu").read_rows(0, 1)
