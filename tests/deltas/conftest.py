import numpy as np
import pytest
from safetensors.numpy import save_file

from labkit.files.tensor_file import open_tensor_file


@pytest.fixture
def stored(tmp_path):
    """Puts an array into a file of its own and gives the tensor that lies there."""

    def put(name, values):
        path = tmp_path / f"{name}.safetensors"
        save_file({name: np.ascontiguousarray(values)}, path)
        return open_tensor_file(path).tensors[0]

    return put
