"""A real JupyterLab and Notebook 7 on the loopback, and a real Chromium that looks at them."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nbformat
import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
LOOPBACK = {"127.0.0.1", "localhost"}

# What JupyterLab itself writes to the console as an error, none of it about a widget.
THEIR_ERRORS = (
    # The language server and the collaboration endpoints are probed, and are not installed.
    "/lsp/status",
    # A workspace or a setting that was never saved is asked for and answered with 404.
    "/api/workspaces",
    "/api/settings",
    # The icon of the page; Notebook 7 looks for it under a name that does not exist.
    "favicon",
)


class Jupyter:
    """A running Jupyter server: its address, its token and the folder that it serves."""

    def __init__(self, folder: Path, address: str, token: str) -> None:
        self.folder, self.address, self.token = folder, address, token

    def url(self, name: str, app: str) -> str:
        page = "lab/tree" if app == "lab" else "notebooks"
        return f"{self.address}/{page}/{name}?token={self.token}"

    def write(self, name: str, cells: list[str]) -> None:
        """A notebook with these code cells."""
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(source) for source in cells],
            metadata={
                "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
            },
        )
        nbformat.write(notebook, self.folder / name)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def jupyter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jupyter]:
    home = tmp_path_factory.mktemp("jupyter")
    folder = home / "work"
    (home / "config" / "labconfig").mkdir(parents=True)
    folder.mkdir()
    # The news of the Jupyter project come over the network, which these tests do without.
    page = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
    (home / "config" / "labconfig" / "page_config.json").write_text(json.dumps(page))
    environment = {
        **os.environ,
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "IPYTHONDIR": str(home / "ipython"),
        "JUPYTER_PLATFORM_DIRS": "1",
    }
    port, token = _free_port(), secrets.token_hex(16)
    log = (home / "server.log").open("w")
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
            *(f"--port={port}", "--ip=127.0.0.1", f"--IdentityProvider.token={token}"),
            *(f"--ServerApp.root_dir={folder}", "--ServerApp.port_retries=0"),
            *(
                "--LabApp.expose_app_in_browser=True",
                "--JupyterNotebookApp.expose_app_in_browser=True",
            ),
        ],
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                with urllib.request.urlopen(f"{address}/api?token={token}", timeout=2):
                    break
            except (urllib.error.URLError, OSError):
                if server.poll() is not None:
                    break
                time.sleep(0.25)
        else:
            pytest.fail(f"Jupyter did not start:\n{(home / 'server.log').read_text()[-2000:]}")
        yield Jupyter(folder, address, token)
    finally:
        server.terminate()
        server.wait(timeout=20)
        log.close()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine; apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as runner:
        opened = runner.chromium.launch(executable_path=CHROMIUM, headless=True, args=QUIET)
        yield opened
        opened.close()


class Watched:
    """A browser page, and what went wrong in it."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.outside: list[str] = []
        self.errors: list[str] = []
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.errors.append(f"uncaught: {error}"))
        page.route("**/*", self._asked)

    def _said(self, message: Any) -> None:
        text = f"{message.text} {message.location.get('url', '')}"
        if message.type == "error" and not any(known in text for known in THEIR_ERRORS):
            self.errors.append(text)

    def _asked(self, route: Any) -> None:
        address = urlsplit(route.request.url)
        if address.scheme in ("data", "blob") or address.hostname in LOOPBACK:
            route.continue_()
        else:
            self.outside.append(route.request.url)
            route.abort()


@pytest.fixture
def new_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens pages; at the end none of them may have erred or asked anything of the network."""
    watched: list[Watched] = []
    contexts = []

    def opened(**options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 1000}, **options})
        context.set_default_timeout(30_000)
        contexts.append(context)
        watched.append(Watched(context.new_page()))
        return watched[-1].page

    yield opened
    for context in contexts:
        context.close()
    assert [address for one in watched for address in one.outside] == []
    assert [error for one in watched for error in one.errors] == []


@pytest.fixture
def open_notebook(jupyter: Jupyter, new_page: Callable[..., Any]) -> Callable[..., Any]:
    """Opens a notebook in "lab" or "notebook" (Notebook 7), and runs all of its cells."""

    def opened(cells: list[str] | str, app: str = "lab", run: bool = True, **options: Any) -> Any:
        name = cells if isinstance(cells, str) else f"{secrets.token_hex(4)}.ipynb"
        if not isinstance(cells, str):
            jupyter.write(name, cells)
        page = new_page(**options)
        page.goto(jupyter.url(name, app))
        page.wait_for_selector(".jp-Notebook .jp-Cell")
        if run:
            run_all(page)
        return page

    return opened


def run_all(page: Any) -> None:
    """Runs every cell, once the kernel is there."""
    page.locator(".jp-Toolbar-kernelName", has_text="Python 3").wait_for()
    page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for(state="attached")
    command(page, "notebook:run-all-cells")


def command(page: Any, name: str, **arguments: Any) -> None:
    """Runs a command of JupyterLab, as its menus do."""
    page.evaluate(
        "([name, given]) => void window.jupyterapp.commands.execute(name, given)",
        [name, arguments],
    )


def theme(page: Any, name: str) -> None:
    """Switches to "JupyterLab Light" or "JupyterLab Dark", and waits until it is there."""
    command(page, "apputils:change-theme", theme=name)
    page.locator(f'body[data-jp-theme-name="{name}"]').wait_for(state="attached")
