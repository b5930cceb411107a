import pytest

from tests.architectures import make_architecture


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Makes a base of an architecture, once for each name and settings."""
    root, there = tmp_path_factory.mktemp("kinds"), {}

    def make(name, **changes):
        key = f"{name} {sorted(changes.items())}"
        if key not in there:
            there[key] = make_architecture(root / f"{name}-{len(there)}", name, **changes)
        return there[key]

    return make
