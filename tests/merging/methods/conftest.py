import pytest

from tests.merging.methods.dense import make_pair


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
