"""The folders are the architecture: CONTRIBUTING.md, the contracts and the tests agree on them."""

import ast
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import labkit

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "labkit"
MODULES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = sorted({path.parent for path in MODULES} - {PACKAGE})
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# Modules without a test file of their own: the test that covers them -> why there, and which.
TESTED_ELSEWHERE = {
    "tests/figures/test_palette.py": ("one palette for pictures and widgets", "widgets/sources"),
    "tests/bench/test_lab.py": (
        "pieces of the lab, seen through it",
        "bench/conversation bench/many_prompts bench/panel bench/passages bench/remembering "
        "bench/trail",
    ),
    "tests/cli/test_app.py": (
        "every command is run through the app",
        "cli/adapters cli/looking cli/making cli/options cli/recipes cli/uploading",
    ),
    "tests/exporting/test_exports.py": (
        "what an export is told and says of itself",
        "exporting/export_receipt exporting/job",
    ),
    "tests/exporting/test_gguf_files.py": (
        "what is asked of a runtime, and scripts that run in processes of their own",
        "exporting/asking exporting/workers/gguf_convert exporting/workers/llama_answer",
    ),
    "tests/exporting/test_environments.py": (
        "a script that runs in an environment of uv's",
        "exporting/workers/nothing",
    ),
    "tests/exporting/test_transformers_formats.py": (
        "scripts that run in processes of their own",
        "exporting/workers/gptqmodel_convert exporting/workers/llm_compressor_convert "
        "exporting/workers/transformers_answer",
    ),
    "tests/exporting/test_mlx_folders.py": (
        "scripts that run in an environment of uv's",
        "exporting/workers/mlx_answer exporting/workers/mlx_convert",
    ),
    "tests/exporting/test_exllama_folders.py": (
        "a script that runs where a GPU is",
        "exporting/workers/exllama_convert",
    ),
    "tests/deltas/test_low_rank.py": ("what a delta has to say", "deltas/delta"),
    "tests/demonstration/test_demonstration.py": (
        "scripts that are run once; what they made is tested",
        "demonstration/base demonstration/measure demonstration/passages demonstration/problems "
        "demonstration/stepwise demonstration/texts demonstration/train demonstration/words",
    ),
    "tests/merging/test_rounding.py": (
        "rounding once, whatever calculates it",
        "files/floats merging/rounding_on_device",
    ),
    "tests/models/test_adapter_kinds.py": (
        "each kind of adapter goes through all of them",
        "files/pickled models/adapter_config models/adapter_file models/kinds/part models/names "
        "models/source",
    ),
    "tests/publishing/test_recombination.py": (
        "weights of modules by their names",
        "publishing/module_weights",
    ),
    "tests/publishing/test_extraction.py": (
        "what it makes is an adapter",
        "publishing/made_adapter",
    ),
    "tests/merging/test_recipe.py": (
        "what a recipe can say",
        "gradients/calls merging/formula merging/methods/weighted_sum merging/recipe_file",
    ),
    "tests/merging/methods/test_linear.py": (
        "what is said of a method that divides by the weights",
        "merging/methods/lone_weights",
    ),
    "tests/inference/test_live_model.py": (
        "a model that is loaded is a live one",
        "inference/loading",
    ),
    "tests/inference/test_merged_tensors.py": (
        "what is merged at its place is what a merge writes",
        "inference/places",
    ),
    "tests/merging/test_planning.py": (
        "how a plan shows itself",
        "summary",
    ),
    "tests/probing/test_sweeping.py": (
        "parts of a sweep, tested whole",
        "probing/grid_points probing/point_evaluation probing/sweep_file",
    ),
    "tests/probing/test_fitting.py": (
        "a search, its evaluations and where no gradient goes, each seen through a fit",
        "probing/anchor_search probing/evaluations probing/searching",
    ),
    "tests/widgets/test_editor.py": ("sliders behave as the editor does", "widgets/plain_sliders"),
    "tests/writing/test_card.py": (
        "parts of the card",
        "writing/card_prompts writing/front_matter",
    ),
    "tests/writing/test_write.py": (
        "parts of one engine, tested whole",
        "writing/layout writing/progress",
    ),
}


def relative(path):
    return path.relative_to(ROOT).as_posix()


def contracts():
    return {one["id"]: one for one in PROJECT["tool"]["importlinter"]["contracts"]}


def table_of_folders():
    """The names in the first column of CONTRIBUTING.md's table, from top to bottom."""
    return re.findall(r"^\| `(\w+)(?:/|\.py)` \|", CONTRIBUTING, re.MULTILINE)


def test_the_table_has_every_folder():
    beside_folders = {path.stem for path in PACKAGE.glob("*.py") if path.stem[0] != "_"}
    folders = {folder.name for folder in FOLDERS if folder.parent == PACKAGE}
    table = table_of_folders()
    assert set(table) == beside_folders | folders
    assert len(table) == len(set(table))


def test_the_table_and_the_contract_have_one_order():
    layers = [layer.split(" | ") for layer in reversed(contracts()["layers"]["layers"])]
    level = {name: number for number, layer in enumerate(layers) for name in layer}
    assert level.pop("__main__") == max(level.values()) + 1
    table = table_of_folders()
    assert set(level) == set(table)
    assert [level[name] for name in table] == sorted(level.values())


def test_every_folder_of_modules_is_a_package():
    assert [relative(folder) for folder in FOLDERS if not (folder / "__init__.py").is_file()] == []


@pytest.mark.parametrize("folder", FOLDERS, ids=relative)
def test_a_folder_says_what_it_is_for(folder):
    said = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    assert 2 <= len(re.findall(r"[.](?=\s|$)", said)) <= 4, said  # with what it may import
    if folder.parent == PACKAGE:
        assert "May import" in said


def test_no_module_has_the_name_of_a_public_function_or_of_a_standard_module():
    names = {path.stem for path in MODULES if path.stem[:2] != "__"}
    names |= {folder.name for folder in FOLDERS}
    namespaces = {name for name in labkit.__all__ if isinstance(getattr(labkit, name), ModuleType)}
    assert names & set(labkit.__all__) == namespaces
    assert names & sys.stdlib_module_names == set()


def test_labkit_imports_nothing_of_itself_through_its_front_door():
    """`from labkit import plan` would lead around the contract, which sees only `labkit`."""
    found = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{relative(path)}: write imports in full"
                if node.module == "labkit":
                    found += [(relative(path), one.name) for one in node.names]
            elif isinstance(node, ast.Import):
                found += [(relative(path), one.name) for one in node.names if one.name == "labkit"]
    parts = set(table_of_folders()) | {"__version__"}
    assert [one for one in found if one[1] not in parts] == []


def test_every_module_has_a_test_of_its_name_or_a_reason():
    modules = {
        path.relative_to(PACKAGE).with_suffix("").as_posix()
        for path in MODULES
        if path.stem[:2] != "__"
    }
    own = {
        name
        for name in modules
        if (ROOT / "tests" / name).with_name(f"test_{Path(name).name}.py").is_file()
    }
    elsewhere = [name for _, names in TESTED_ELSEWHERE.values() for name in names.split()]
    assert sorted(elsewhere) == sorted(modules - own)
    for test, (reason, _) in TESTED_ELSEWHERE.items():
        assert (ROOT / test).is_file(), test
        assert reason


def test_what_contributing_names_is_there():
    paths = re.findall(r"`([\w.-]+/[\w./-]*|[\w-]+\.(?:md|toml|yml|yaml))`", CONTRIBUTING)
    paths += [f"benchmarks/{name}.py" for name in re.findall(r"-m benchmarks\.(\w+)", CONTRIBUTING)]
    missing = {path for path in paths if not any((top / path).exists() for top in (ROOT, PACKAGE))}
    assert missing == set()
    assert len(paths) > 30


def test_pre_commit_has_the_checks_of_ci():
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    ci = [line.split(" notebooks/")[0] for line in lines if line.startswith("uv run ")]
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook["entry"] for repository in config["repos"] for hook in repository["hooks"]]
    assert [*hooks, "uv run pytest", "uv run --group book python -m docs.book"] == ci


def test_the_changelog_begins_with_this_version():
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert re.fullmatch(r"(\S+) \((?:unreleased|\d{4}-\d\d-\d\d)\)", headings[0])
    assert headings[0].split()[0] == labkit.__version__ == PROJECT["project"]["version"]
