"""Checks the pages of the built book: every link inside it leads somewhere, nothing is fetched."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

FETCHED = {"script": "src", "img": "src", "link": "href", "source": "src", "iframe": "src"}
"""What a browser loads as soon as it shows the page."""
RELATIONS = {"stylesheet", "icon", "preload", "manifest"}
"""The kinds of <link> that are loaded; the others only say something."""


class Page(HTMLParser):
    """What one page links to, and the places in it that can be linked to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep what a tag links to, as HTMLParser comes to it."""
        given = {name: value or "" for name, value in attrs}
        self.places |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        address = given.get(FETCHED.get(tag, ""))
        if address and (tag != "link" or RELATIONS & set(given.get("rel", "").split())):
            self.fetched.append(address)


def problems(folder: Path) -> list[str]:
    """What is wrong with the links of a built book, a line each.

    Args:
        folder: the book's pages.
    """
    pages = {
        path: Page(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.html"))
    }
    found = []
    for path, page in pages.items():
        name = path.relative_to(folder).as_posix()
        for link in dict.fromkeys([*page.links, *page.fetched]):
            address = urlsplit(link)
            if address.scheme or address.netloc:
                if link in page.fetched and address.scheme != "data":
                    found.append(f"{name}: is fetched from elsewhere when the page opens: {link}")
                continue
            target = path.parent / unquote(address.path) if address.path else path
            target = target.resolve()
            if not target.is_file():
                found.append(f"{name}: leads nowhere: {link}")
            elif target in pages and unquote(address.fragment) not in {"", *pages[target].places}:
                found.append(f"{name}: there is no such place in the page: {link}")
    return found
