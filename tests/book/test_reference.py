"""Every public name has its place in the reference."""

import inspect

from sphinx.util.inventory import InventoryFile

import labkit
from docs.book.reference import folders, given_back, public_names


def inventory(pages):
    with (pages / "objects.inv").open("rb") as file:
        kinds = InventoryFile.load(file, "", lambda base, path: path)
    return {
        name: item for kind, items in kinds.items() if "py:" in kind for name, item in items.items()
    }


def test_every_public_name_is_documented(small_book):
    public = set()
    for name in labkit.__all__:
        value = getattr(labkit, name)
        inner = value.__all__ if inspect.ismodule(value) else []
        public |= {f"labkit.{name}.{one}" for one in inner} or {f"labkit.{name}"}
    documented = inventory(small_book)
    assert public - set(documented) == set()
    assert "labkit.Gradient.resample" in documented


def test_a_name_stands_on_the_page_of_its_folder(small_book):
    page = inventory(small_book)["labkit.evaluate"]
    uri = page[2] if isinstance(page, tuple) else page.uri
    assert uri.split("#")[0] == "reference/probing.html"


def test_what_functions_give_back_is_documented(small_book):
    names = {one.__name__ for one in given_back()}
    assert {"LiveModel", "Fit", "Front"} <= names
    documented = inventory(small_book)
    assert [
        one for one in given_back() if f"{one.__module__}.{one.__name__}" not in documented
    ] == []


def test_types_and_names_in_docstrings_are_links(small_book):
    page = (small_book / "reference" / "probing.html").read_text()
    signature = page[page.index('id="labkit.evaluate"') :]
    signature = signature[: signature.index("</dt>")]
    assert 'href="inference.html#labkit.inference.live_model.LiveModel"' in signature
    gradients = (small_book / "reference" / "gradients.html").read_text()
    assert 'href="#labkit.Gradient.bell"' in gradients  # "a `bell` upside down", in valley


def test_the_pages_have_the_folders_order():
    groups = public_names()
    assert [name for name in folders() if name in groups][:3] == ["errors", "gradients", "models"]
    assert sum(map(len, groups.values())) == len(labkit.__all__)


def test_every_command_and_option_is_on_the_page_of_the_shell(small_book):
    page = (small_book / "reference" / "command_line.html").read_text()
    for command in ("demo", "inspect", "merge", "picture", "bake", "verify", "recipe"):
        assert f">labkit {command}<" in page
    assert "--weights-for" in page
    assert "\x1b" not in page
