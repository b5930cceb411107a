"""pyproject.toml and environment.yml state the same bounds; importing labkit is quick."""

import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base", "PyYAML": "pyyaml"}


def bounds(requirements):
    return dict(requirement.split(">=") for requirement in requirements)


def test_conda_has_the_same_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = bounds(entry for entry in environment if isinstance(entry, str) and ">=" in entry)
    assert f">={conda.pop('python')}" == project["requires-python"]
    pip = bounds(project["dependencies"])
    assert {CONDA_NAMES.get(name, name): bound for name, bound in pip.items()} == conda


def test_importing_labkit_imports_nothing_heavy():
    code = (
        "import sys, labkit, labkit.cli; labkit.Gradient.ramp(40, 18, 20); "
        "heavy = {'torch', 'transformers', 'matplotlib', 'pandas', 'ipywidgets', 'anywidget'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_function_may_be_named_as_its_module():
    code = (
        "import labkit.merging.planning, labkit.writing.verification, labkit as lk; "
        "print(callable(lk.plan), callable(lk.verify), lk.plan.__module__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True", "labkit.merging.planning"]


def test_jupyter_opens_the_notebooks_of_a_clone_and_leaves_others_alone(tmp_path):
    from traitlets.config import Config

    text = (ROOT / "notebooks" / ".jupyter" / "jupyter_server_config.py").read_text()

    def settings(prefix):
        config = Config()
        code = f"import sys; sys.prefix = {str(prefix)!r}\n{text}"
        before = sys.prefix
        try:
            exec(code, {"get_config": lambda: config})
        finally:
            sys.prefix = before
        return config

    assert settings(tmp_path / "venv") == {}
    config = settings(ROOT / ".venv")
    assert config.ServerApp.root_dir == str(ROOT / "notebooks")
    first = config.LabApp.default_url.removeprefix("/lab/tree/")
    assert (ROOT / "notebooks" / first).is_file()
