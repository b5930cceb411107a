"""axe-core, the accessibility checker: found where it is, or fetched once from the npm registry."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

VERSION = "4.10.3"


def axe_script(folder: Path) -> Path:
    """The file axe.min.js: `$LABKIT_AXE`, or out of the npm package; skips where there is neither.

    Args:
        folder: a temporary folder to unpack it into.
    """
    given = os.environ.get("LABKIT_AXE")
    if given:
        return Path(given)
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm here to fetch axe-core with; or set LABKIT_AXE to its axe.min.js")
    fetched = subprocess.run(
        [npm, "pack", f"axe-core@{VERSION}", "--silent"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    if fetched.returncode:
        pytest.skip(f"npm could not fetch axe-core: {fetched.stderr.strip()[-200:]}")
    with tarfile.open(folder / f"axe-core-{VERSION}.tgz") as package:
        content = package.extractfile("package/axe.min.js")
        assert content is not None
        (folder / "axe.min.js").write_bytes(content.read())
    return folder / "axe.min.js"


def serious_findings(page: Any, script: Path, selector: str) -> list[str]:
    """What axe finds in a part of the page that is serious or critical."""
    page.evaluate(script.read_text(encoding="utf-8"))
    found = page.evaluate(
        "async selector => (await axe.run(selector, {resultTypes: ['violations']})).violations",
        selector,
    )
    return [
        f"{one['id']}: {one['help']}: {node['html'][:160]}: {node['failureSummary'][:200]}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]
