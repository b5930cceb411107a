"""Opens Jupyter in the notebooks of a clone of labkit, with the first one in front.

Installed into the environment's etc/jupyter. It does something only where the environment lies in
a clone, as `uv run` makes it; anywhere else labkit leaves Jupyter as it is.
"""

import os
import sys
from pathlib import Path

notebooks = Path(sys.prefix).parent / "notebooks"
if (notebooks / ".jupyter" / "jupyter_server_config.py").is_file():
    c = get_config()
    c.ServerApp.root_dir = str(notebooks)
    c.LabApp.default_url = "/lab/tree/00_ten_minutes.ipynb"
    # Containers run as root; the server listens on this machine only, behind a token.
    c.ServerApp.allow_root = True
    # As labkit asks for, also in notebooks that import torch before labkit; see labkit/__init__.py.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
