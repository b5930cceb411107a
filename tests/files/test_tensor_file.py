import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import labkit as lk
from labkit.files.floats import wide
from labkit.files.tensor_file import header_for, open_tensor_file


@pytest.fixture
def stored(tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = {
        "b": torch.randn(3, 4).bfloat16(),
        "a": torch.randn(5),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(2.0).double(),
    }
    save_file(tensors, path, metadata={"format": "pt"})
    return path, tensors


def with_header(path, header, data=b""):
    text = json.dumps(header).encode() if isinstance(header, dict) else header
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_reads_what_safetensors_wrote(stored):
    path, tensors = stored
    file = open_tensor_file(path)
    assert file.metadata == {"format": "pt"}
    assert {tensor.name for tensor in file.tensors} == set(tensors)
    starts = [tensor.start for tensor in file.tensors]
    assert starts == sorted(starts)
    for tensor in file.tensors:
        assert np.array_equal(tensor.read(), tensors[tensor.name].double().numpy())
    assert path.read_bytes().startswith(file.header_bytes)


def test_writes_what_safetensors_reads(tmp_path):
    header = header_for(iter([("a", "F32", (2, 3)), ("b", "BF16", (4,))]), {"format": "pt"})
    path = tmp_path / "b.safetensors"
    path.write_bytes(header + bytes(2 * 3 * 4 + 4 * 2))
    with safe_open(path, "pt") as file:
        assert file.get_tensor("a").shape == (2, 3)
        assert file.get_tensor("b").dtype == torch.bfloat16


def test_every_cut_is_noticed(stored):
    path, _ = stored
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(lk.LabkitError):
            open_tensor_file(path)


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"{", b"", "is not JSON"),
        (b"[]", b"", "is not a JSON object"),
        (b"[" * 100_000, b"", "is not JSON"),
        ({"a": 1}, b"", "has no dtype, shape or data_offsets"),
        ({"a": {"dtype": "F99", "shape": [], "data_offsets": [0, 0]}}, b"", "unknown dtype 'F99'"),
        ({"a": {"dtype": [], "shape": [], "data_offsets": [0, 0]}}, b"", "unknown dtype"),
        (
            {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
            b"1234",
            "expected lists of whole numbers",
        ),
        (
            {"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}},
            b"1234",
            "expected lists of whole numbers",
        ),
        (
            {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
            b"1234",
            "has 4 bytes, but F32 of shape",
        ),
        (
            {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
            b"12345",
            "its tensors end at byte",
        ),
        (
            {
                "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
                "b": {"dtype": "F32", "shape": [1], "data_offsets": [2, 6]},
            },
            b"123456",
            "without gap or overlap",
        ),
        (
            b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},'
            b'"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}',
            b"",
            "names 'a' twice",
        ),
    ],
)
def test_damaged_headers(tmp_path, header, data, message):
    path = with_header(tmp_path / "a.safetensors", header, data)
    with pytest.raises(lk.LabkitError) as error:
        open_tensor_file(path)
    assert message in str(error.value)
    assert "a.safetensors" in str(error.value)


def test_absurd_header_length(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes((2**63).to_bytes(8, "little") + b"{}")
    with pytest.raises(lk.LabkitError, match="header claims 9223372036854775808"):
        open_tensor_file(path)
    with pytest.raises(lk.LabkitError, match="cannot read .*No such file"):
        open_tensor_file(tmp_path / "b.safetensors")


def test_a_file_that_changes_is_noticed(stored):
    path, _ = stored
    file = open_tensor_file(path)
    file.require_unchanged()
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(lk.LabkitError, match="was changed while labkit worked"):
        file.require_unchanged()
    path.write_bytes(b"")
    with pytest.raises(lk.LabkitError, match="became shorter while it was read"):
        file.tensors[-1].read()
    path.unlink()
    with pytest.raises(lk.LabkitError, match="was removed while"):
        file.require_unchanged()


def test_whole_numbers_are_not_calculated_with(tmp_path):
    save_file({"a": torch.zeros(2, dtype=torch.int32)}, tmp_path / "a.safetensors")
    with pytest.raises(lk.LabkitError, match="stored as I32"):
        open_tensor_file(tmp_path / "a.safetensors").tensors[0].read()


def test_runs_of_elements_are_read_as_they_are_stored(tmp_path):
    numbers = torch.arange(24, dtype=torch.bfloat16).reshape(4, 6)
    save_file({"before": torch.ones(3), "x": numbers}, tmp_path / "x.safetensors")
    tensor = next(t for t in open_tensor_file(tmp_path / "x.safetensors").tensors if t.name == "x")
    runs = [(0, 2), (6, 12), (23, 24)]
    found = [wide(values, "BF16").tolist() for values in tensor.read_runs(runs)]
    assert found == [list(range(start, stop)) for start, stop in runs]
    (tmp_path / "x.safetensors").unlink()
    with pytest.raises(lk.LabkitError, match="cannot read .*No such file"):
        list(tensor.read_runs(runs))
