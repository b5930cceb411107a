"""A real JupyterLab and Notebook 7 on the loopback, and a real Chromium that looks at them."""

from __future__ import annotations

import contextlib
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

from labkit.demonstration.base import base_folder

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
    # What ipywidgets says of every widget in a notebook that is opened without its kernel.
    "widget model not found",
    # Notebook 7 starts plugins of JupyterLab that want a file browser, which its page has not.
    "Cannot read properties of undefined (reading 'schema')",
    "Command 'filebrowser:open-path' not registered.",
)

# JupyterLab's own layouts (the toolbar's menu of what does not fit, the notebook that shows only
# the cells in sight) can take a node out twice when a slow machine draws late. It is passed over
# only where no frame of the stack is a widget's code.
TAKEN_OUT_TWICE = "Failed to execute 'removeChild' on 'Node'"
# anywidget imports a widget's code from such an address, so that a frame of the stack names it.
WIDGET_SCHEMES = ("blob:", "data:")


class Jupyter:
    """A running Jupyter server: its address, its token and the folder that it serves."""

    def __init__(self, folder: Path, address: str, token: str) -> None:
        self.folder, self.address, self.token = folder, address, token

    def url(self, name: str, app: str) -> str:
        # A workspace of its own: JupyterLab would open again what the page before had open, and
        # the tests would look at either.
        page = f"lab/workspaces/{secrets.token_hex(4)}/tree" if app == "lab" else "notebooks"
        return f"{self.address}/{page}/{name}?token={self.token}"

    def ask(self, path: str, method: str = "GET") -> bytes:
        """What the server's interface answers."""
        request = urllib.request.Request(
            f"{self.address}{path}",
            method=method,
            headers={"Authorization": f"token {self.token}"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return bytes(answer.read())

    def stop_kernels(self) -> None:
        """Ends every notebook's kernel."""
        for session in json.loads(self.ask("/api/sessions")):
            self.ask(f"/api/sessions/{session['id']}", "DELETE")

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


@contextlib.contextmanager
def running_jupyter(home: Path) -> Iterator[Jupyter]:
    """A server for JupyterLab and Notebook 7 whose every file is in the folder `home`."""
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
        "LABKIT_CACHE": str(home / "cache"),
    }
    # The demo's model is unpacked once for all tests; what a lab remembers is these tests' own.
    base = base_folder()
    (home / "cache" / base.parent.name).parent.mkdir(parents=True)
    (home / "cache" / base.parent.name).symlink_to(base.parent)
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
        cwd=home,
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(720):  # three minutes, on a machine that is busy
            try:
                with urllib.request.urlopen(f"{address}/api?token={token}", timeout=2):
                    break
            except (urllib.error.URLError, OSError):
                if server.poll() is not None:
                    break
                time.sleep(0.25)
        else:
            raise RuntimeError(
                f"Jupyter did not start:\n{(home / 'server.log').read_text()[-2000:]}"
            )
        yield Jupyter(folder, address, token)
    finally:
        server.terminate()
        server.wait(timeout=20)
        log.close()


class Watched:
    """A browser page, and what went wrong in it."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.outside: list[str] = []
        self.errors: list[str] = []
        page.on("console", self._said)
        page.on("pageerror", self._threw)
        page.route("**/*", self._asked)

    def _said(self, message: Any) -> None:
        if message.type == "error":
            self._erred(f"{message.text} {message.location.get('url', '')}")

    def _threw(self, error: Any) -> None:
        stack = error.stack or ""
        if error.message.startswith(TAKEN_OUT_TWICE) and not any(
            scheme in stack for scheme in WIDGET_SCHEMES
        ):
            return
        self._erred(f"uncaught: {error.message}\n{stack}")

    def _erred(self, text: str) -> None:
        if not any(known in text for known in THEIR_ERRORS):
            self.errors.append(text)

    def _asked(self, route: Any) -> None:
        address = urlsplit(route.request.url)
        if address.scheme in ("data", "blob") or address.hostname in LOOPBACK:
            route.continue_()
        else:
            self.outside.append(route.request.url)
            route.abort()


class Pages:
    """Opens pages, each in a browser context of its own, and knows what went wrong in them."""

    def __init__(self, browser: Any, jupyter: Jupyter) -> None:
        self.browser, self.jupyter = browser, jupyter
        self.watched: list[Watched] = []
        self.contexts: list[Any] = []

    def notebook(
        self, cells: list[str] | str, app: str = "lab", run: bool = True, **options: Any
    ) -> Any:
        """A page that shows a notebook (code cells, or the name of a file) in lab or notebook.

        Args:
            cells: sources of the code cells, or the name of a file that exists.
            app: "lab" for JupyterLab, "notebook" for Notebook 7.
            run: run all cells.
            options: of the browser's context, such as the size of its window.
        """
        context = self.browser.new_context(
            **{"viewport": {"width": 1280, "height": 1000}, **options}
        )
        context.set_default_timeout(240_000)
        self.contexts.append(context)
        self.watched.append(Watched(context.new_page()))
        page = self.watched[-1].page
        name = cells if isinstance(cells, str) else f"{secrets.token_hex(4)}.ipynb"
        if not isinstance(cells, str):
            self.jupyter.write(name, cells)
        page.goto(self.jupyter.url(name, app))
        page.wait_for_selector(".jp-Notebook .jp-Cell")
        if run:
            run_all(page)
        return page

    def check(self) -> None:
        """No page may have asked anything of the network, or have written an error.

        What is reported once is not reported again: one error fails one test.
        """
        outside = [address for one in self.watched for address in one.outside]
        errors = [error for one in self.watched for error in one.errors]
        for one in self.watched:
            one.outside.clear()
            one.errors.clear()
        assert outside == [], outside
        assert errors == [], "\n".join(errors)

    def close(self) -> None:
        for context in self.contexts:
            context.close()
        # A lab goes on answering without its page, and would take the next test's processor.
        self.jupyter.stop_kernels()


def run_all(page: Any) -> None:
    """Runs every cell, once the kernel is there."""
    # In a narrow window JupyterLab folds its name away, with other buttons that do not fit.
    page.locator(".jp-Toolbar-kernelName", has_text="Python 3").wait_for(state="attached")
    page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for(state="attached")
    command(page, "notebook:run-all-cells")


def command(page: Any, name: str, **arguments: Any) -> None:
    """Runs a command of JupyterLab, as its menus do."""
    page.evaluate(
        "([name, given]) => void window.jupyterapp.commands.execute(name, given)",
        [name, arguments],
    )


def theme(page: Any, name: str) -> None:
    """Switches to "JupyterLab Light" or "JupyterLab Dark", and waits for its colours."""
    command(page, "apputils:change-theme", theme=name)
    page.locator(f'body[data-jp-theme-name="{name}"]').wait_for(state="attached")
    page.wait_for_function(
        r"""dark => {
            const paper = getComputedStyle(document.body).getPropertyValue('--jp-layout-color0');
            const probe = document.body.appendChild(document.createElement('i'));
            probe.style.color = paper;
            const [red] = getComputedStyle(probe).color.match(/\d+/g).map(Number);
            probe.remove();
            return (red < 128) === dark && !document.getAnimations().some(
                one => one instanceof CSSTransition);
        }""",
        arg=name.endswith("Dark"),
    )


def until(true: Callable[[], bool], said: Callable[[], str], seconds: float = 10) -> None:
    """Waits until something is true, and fails with what `said` says if it does not become so."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, said()
        time.sleep(0.03)


def save(page: Any) -> None:
    """Saves the notebook, and waits for the server's answer."""
    with page.expect_response(
        lambda answer: answer.request.method == "PUT" and "/api/contents/" in answer.url
    ):
        command(page, "docmanager:save")
