import pytest

from tests.merging.methods.dense import make_pair
from tests.tiny import make_another_model


@pytest.fixture(scope="session")
def llamas(tmp_path_factory):
    """A base and two LoRAs: Llama."""
    return make_pair(tmp_path_factory.mktemp("llamas"), "llama")


@pytest.fixture(scope="session")
def gpts(tmp_path_factory):
    """A base and two LoRAs: GPT-2, whose matrices lie transposed."""
    return make_pair(tmp_path_factory.mktemp("gpts"), "gpt2")


@pytest.fixture(params=["llamas", "gpts"])
def pair(request):
    """The two, one after the other."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def another(tmp_path_factory, llamas):
    """Two models of the same shapes: one close to the base, one far from it."""
    folder = tmp_path_factory.mktemp("models")
    return [make_another_model(folder / str(scale), llamas[0], scale, seed=int(100 * scale))
            for scale in (0.01, 1)]  # fmt: skip
