import pytest

from tests.merging.methods.dense import make_pair


@pytest.fixture(scope="session", params=["llama", "gpt2"])
def pair(request, tmp_path_factory):
    """A base and two LoRAs of an architecture."""
    return make_pair(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="session")
def llamas(tmp_path_factory):
    """A base and two LoRAs: Llama."""
    return make_pair(tmp_path_factory.mktemp("llamas"), "llama")
