"""Holds two versions of labkit against each other, byte for byte.

    uv run python -m benchmarks.same_bytes OLD_TREE NEW_TREE [--only TEXT]

Each tree is a checkout (`git clone . OLD_TREE`, then `git checkout COMMIT` in it). Tiny bases and
adapters are made once: every architecture of tests/architectures.py with every kind of adapter of
tests/kinds.py, and bases and adapters of unusual forms. Then each tree, in a process of its own,
merges, bakes, surveys, draws, verifies and refuses the same inputs at the same path, through
`import labkit` and `labkit`'s command line alone, which all versions have.

Every file of the results is compared, and so are tables (as CSV, every digit), logits of live
models, what is printed, and the text of every error. Left out is what differs between two runs of
one version: the time in a receipt, and how long a merge took; and of the norm of a change its last
digits, which hang on the rows that are added up at a time. And the forecast's working memory,
which says how a version does its work and not what comes out. Prints a table and every
difference; exits with 1 where there is one.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib.util
import io
import json
import os
import random
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DTYPES = ("auto", "float16", "bfloat16", "float32")
LAYERS = 3
MOST_LINES = 12
"""Lines of a difference between two texts that are shown."""
TEXTS = {".json", ".md", ".yaml", ".txt", ".csv", ".svg"}
OF_ONE_RUN = [
    (r'^ "(created|seconds)": .*$', r' "\1": …'),
    (r'("asked_norm": [0-9.]{12})[0-9]+', r"\1…"),
    (r", in [0-9.]+ s$", ", in … s"),
    (r"^took +[0-9]+ ms,", "took … ms,"),
    (r"in at most [0-9]+ MB of working memory", "in at most … MB of working memory"),
    (r"\n*merge:.*%\|.*$", ""),
]
"""What differs between two runs, and what stands there instead."""
DIGESTS = r"(?m)(?:^ +\S+: [0-9a-f]{64}\n){2,}"
"""A recipe's list of files, which stood in the order in which threads had read them."""
FIGURES = ("labkit.figures", "labkit.figures.survey_figures", "labkit.survey_figures")
"""Modules that the figures of surveys were in, up to now."""


# The inputs, made once.


def make_inputs(root: Path) -> list[dict[str, Any]]:
    """Make bases, adapters and recipes below `root`; give the cases, which are done in order."""
    import torch

    from tests import kinds
    from tests.architectures import make_architecture
    from tests.oracle import quiet, train

    chance = random.Random(0)
    cases: list[dict[str, Any]] = []
    names = list(kinds.ARCHITECTURES)
    for number, architecture in enumerate(names):
        base = root / architecture
        dtype = (torch.float32, torch.bfloat16, torch.float16)[number % 3]
        with quiet():
            make_architecture(base, architecture, dtype=dtype)
            found = kinds.names_of(base)
        settings = {kind: kinds.settings_of(kind, found) for kind in kinds.KINDS}
        if architecture in kinds.EXPERTS:
            stacks = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
            settings["experts"] = {"target_modules": ["q_proj"], "target_parameters": stacks}
        for kind, setting in settings.items():
            if not kinds.makes_sense(architecture, kind):
                continue
            apart = architecture in kinds.TIED and kind in kinds.PARTS
            with quiet():
                trained_on = kinds.untied(base, root / f"{architecture}-untied") if apart else base
                train(root / f"{architecture}-{kind}", trained_on, **setting)
            weights = [round(chance.uniform(-0.5, 1.5), 2) for _ in range(LAYERS)]
            case = {
                "base": architecture, "adapter": f"{architecture}-{kind}", "rest": 0.25,
                "weights": ",".join(map(str, weights)), "dtype": DTYPES[len(cases) % 4],
                "untie": apart, "another": names[number - 1],
            }  # fmt: skip
            cases.append({"do": "merge", "name": f"{architecture} {kind}", **case})
        linear = found["linear"]
        terms = [
            {
                "adapter": f"../{architecture}-{kind}",
                "weights": weights,
                "weights_for": {each: some},
            }
            for kind, weights, each, some in (
                ("plain", "0,0.5,1", linear[0], "1,0,-0.25"),
                ("dora", "0.3,0,-0.5", linear[-1], "0,0,0.125"),
                ("patterns", "1x3", "*", "0.7x3"),
            )
        ]
        write_recipe(root, f"{architecture}-terms", base=f"../{architecture}", terms=terms, rest=1)
        cases.append({"do": "recipe", "name": f"{architecture} three terms",
                      "recipe": f"{architecture}-terms"})  # fmt: skip
    cases += unusual_forms(root)
    cases += [{"name": f"command {i + 1}", "do": "command", "words": line.split("|")}
              for i, line in enumerate(COMMANDS)]  # fmt: skip
    return cases


def write_recipe(root: Path, name: str, **content: Any) -> None:
    """Write `recipes/NAME.yaml`; JSON is YAML."""
    (root / "recipes").mkdir(exist_ok=True)
    (root / "recipes" / f"{name}.yaml").write_text(json.dumps(content, indent=1))


def unusual_forms(root: Path) -> list[dict[str, Any]]:
    """Bases and adapters in other files, with cards and tokenizers, enlarged, broken."""
    import torch
    from safetensors.torch import load_file, save_file

    from tests.architectures import make_architecture
    from tests.oracle import load, quiet, train
    from tests.tiny import load_file_of, make_tokenizer, pickled

    llama, lora = root / "llama", root / "llama-plain"
    tensors, factors = load_file_of(llama), load_file(lora / "adapter_model.safetensors")
    config = json.loads((lora / "adapter_config.json").read_text())

    def base_of(name: str, content: dict[str, Any]) -> None:
        (root / name).mkdir()
        shutil.copy(llama / "config.json", root / name)
        save_file(content, root / name / "model.safetensors")

    def adapter_of(name: str, content: dict[str, Any] = factors, **changes: Any) -> None:
        (root / name).mkdir()
        save_file(content, root / name / "adapter_model.safetensors")
        (root / name / "adapter_config.json").write_text(json.dumps({**config, **changes}))

    cases = []

    def merge(name: str, base: str = "llama", adapter: str = "llama-plain", **options: Any) -> None:
        cases.append({"do": "merge", "name": name, "base": base, "adapter": adapter,
                      "weights": "0.5,0,1", "rest": 0.5, "dtype": "auto", "untie": False,
                      **options})  # fmt: skip

    for shards in (1, 2):
        pickled(llama, root / f"bins-{shards}", shards)
        merge(f"pickled in {shards}", f"bins-{shards}", dtype="bfloat16")
    kinds = [torch.bfloat16, torch.float16, torch.float32]
    base_of("mixed", {k: v.to(kinds[i % 3]) for i, (k, v) in enumerate(sorted(tensors.items()))})
    merge("one file of mixed dtypes", "mixed")
    merge("linked", weights="0,0,1", link=True)
    merge("every weight 0", weights="0x3", rest=0)
    merge("every weight 0, linked", weights="0x3", rest=0, link=True)
    merge("without hashes", hashes=False)
    too_large = {
        "adapter": "../llama-plain",
        "weights": "0x3",
        "weights_for": {"v_proj": "0x2,1e9"},
    }
    write_recipe(root, "too large", base="../llama", terms=[too_large], dtype="float16")
    cases.append({"do": "recipe", "name": "too large for float16", "recipe": "too large"})
    for spelling, rename in {
        "bare": lambda key: key.removeprefix("base_model.model."),
        "ddp": lambda key: f"module.{key}",
        "named": lambda key: re.sub("lora_([AB])[.]", r"lora_\1.default.", key),
    }.items():
        adapter_of(f"lora-{spelling}", {rename(key): value for key, value in factors.items()})
        merge(f"keys, {spelling}", adapter=f"lora-{spelling}")
    for name, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        adapter_of(f"lora-{name}", {key: value.to(dtype) for key, value in factors.items()})
        merge(f"factors in {name}", adapter=f"lora-{name}")
    (root / "lora-bin").mkdir()
    torch.save(factors, root / "lora-bin" / "adapter_model.bin")
    shutil.copy(lora / "adapter_config.json", root / "lora-bin")
    merge("adapter_model.bin", adapter="lora-bin")
    (root / "mlx").mkdir()
    turned = {
        key.removeprefix("base_model.model.").removesuffix(".weight")
        .replace("lora_A", "lora_a").replace("lora_B", "lora_b"): value.T.contiguous()
        for key, value in factors.items()
    }  # fmt: skip
    save_file(turned, root / "mlx" / "adapters.safetensors")
    (root / "mlx" / "adapter_config.json").write_text(json.dumps({
        "fine_tune_type": "lora", "num_layers": 3, "lora_parameters": {"rank": 4, "scale": 1.5},
    }))  # fmt: skip
    merge("MLX's", adapter="mlx")
    with quiet():
        for name in ("llama", "qwen2"):
            train(root / f"{name}-more", root / name, resize=101, target_modules=["q_proj"])
            merge(f"{name} with new tokens", name, f"{name}-more", dtype="float32")
            merge(f"{name} with new tokens at 0", name, f"{name}-more", weights="0x3", rest=0)
        make_architecture(root / "stacked-one", "mixtral")
        stacked = load(root / "stacked-one")
    (root / "stacked").mkdir()
    shutil.copy(root / "stacked-one" / "config.json", root / "stacked")
    save_file(stacked.state_dict(), root / "stacked" / "model.safetensors")
    merge("experts in one tensor", "stacked", "mixtral-experts", dtype="bfloat16")

    shutil.copytree(llama, root / "Pygmalion-2")
    shutil.copytree(lora, root / "supercot|<b> `x`")
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    make_tokenizer(root / "Pygmalion-2", template)
    make_tokenizer(root / "llama")
    (root / "Pygmalion-2" / "README.md").write_text("---\nlicense: llama2\nlanguage: en\n---\nHi")
    (root / "Pygmalion-2" / "LICENSE").write_text("the base's licence")
    (root / "supercot|<b> `x`" / "README.md").write_text("---\nlicense: mit\n---\n")
    merge("a card of many parts", "Pygmalion-2", "supercot|<b> `x`", weights="0,0.5,1")
    ramp = {"ramp": {"layers": 3, "start": 0, "stop": 2}}
    terms = [{"adapter": "../llama-plain", "weights": ramp, "weights_for": {"mlp": "0x2,1"}}]
    write_recipe(
        root, "card", base="../llama", terms=terms, dtype="float16",
        card={"title": "My *merge*", "license": "llama2", "language": ["en", "de"],
              "prompts": ["metharme", "alpaca"]},
    )  # fmt: skip
    cases.append({"do": "recipe", "name": "a recipe with a card and a ramp", "recipe": "card"})
    (root / "mergekit.yaml").write_text(
        "merge_method: task_arithmetic\nbase_model: llama\ndtype: float32\nmodels:\n"
        "- model: llama+llama-plain\n  parameters:\n    weight:\n"
        "    - {filter: mlp, value: [0, 1]}\n    - value: [0.5, 0, 0.5]\n"
    )

    # What is refused.
    nan = {key: value.clone() for key, value in factors.items()}
    next(iter(nan.values()))[0, 1] = float("nan")
    adapter_of("lora-nan", nan)
    adapter_of("lora-short", {key: value[:, 1:].contiguous() for key, value in factors.items()})
    adapter_of("lora-half", dict(sorted(factors.items())[1:]))
    adapter_of("lora-kind", peft_type="LOHA")
    adapter_of("lora-field", brand_new_field=3)
    adapter_of("lora-none", target_modules=["nothing"])
    for name in ("nan", "short", "half", "kind", "field", "none"):
        merge(f"refused, {name}", adapter=f"lora-{name}")
    base_of("llama-nan", {key: value * float("nan") for key, value in tensors.items()})
    base_of("llama-less", dict(sorted(tensors.items())[4:]))
    base_of("llama-cut", tensors)
    with (root / "llama-cut" / "model.safetensors").open("r+b") as file:
        file.truncate(10_000)
    base_of("llama-gptq", tensors)
    path = root / "llama-gptq" / "config.json"
    quantised = json.loads(path.read_text()) | {"quantization_config": {"quant_method": "gptq"}}
    path.write_text(json.dumps(quantised))
    for name in ("nan", "less", "cut", "gptq"):
        merge(f"refused base, {name}", f"llama-{name}")
    merge("refused, an unknown folder", "nowhere")
    merge("refused, an unknown dtype", dtype="int8")
    merge("refused, inside the base", out="llama/out")
    merge("refused, there already", out="llama-plain")
    base, term = "../llama", {"adapter": "../llama-plain", "weights": "1x3"}
    for name, content in {
        "unknown key": {"base": base, "terms": [term], "colour": "red"},
        "no terms": {"base": base, "terms": []},
        "a word for a number": {"base": base, "terms": [{**term, "weights": "1,x,0"}]},
        "a pattern of nothing": {"base": base, "terms": [{**term, "weights_for": {"z": "1x3"}}]},
        "too many weights": {"base": base, "terms": [{**term, "weights": "1x4"}]},
        "another file": {"base": {"reference": base, "sha256": {"config.json": "0" * 64}},
                         "terms": [term]},
        "a prompt": {"base": base, "terms": [term], "card": {"prompts": ["sonnet"]}},
    }.items():  # fmt: skip
        write_recipe(root, name, **content)
        cases.append({"do": "recipe", "name": f"refused recipe, {name}", "recipe": name})
    return cases


COMMANDS = (
    "--help", "merge|--help", "inspect|--help", "bake|--help", "recipe|--help", "push|--help",
    "verify|--help", "picture|--help", "demo|--help", "recipe|preset|--help",
    "inspect|llama|llama-plain",
    "inspect|llama|llama-plain|--weights|0,0.5,1|--csv|OUT/t.csv|--figure|OUT/f.png",
    "inspect|llama|llama-dora|--by|module|--csv|OUT/t.csv|--figure|OUT/f.svg",
    "inspect|qwen2|qwen2-tokens|--by|tensor|--weights|1,0.25,-0.5|--csv|OUT/t.csv",
    "inspect|mixtral|mixtral-experts|--figure|OUT/f.png",
    "inspect|llama|llama-plain|--by|colour",
    "merge|llama|llama-plain|--weights|0,0.5,1|--dry-run",
    "merge|llama|llama-patterns|--weights|0,0.5,1|--weights-for|mlp=1,0,0|--out|OUT/m|--quiet",
    "merge|llama|llama-embedding|--weights|0,0.5,1|--rest|0.5|--dtype|float16|--out|OUT/m",
    "merge|llama|llama-embedding|--weights|0,0.5,1|--out|OUT/m",
    "merge|--recipe|recipes/card.yaml|--out|OUT/m|--no-hash",
    "merge|--recipe|recipes/card.yaml|--weights|1x3|--out|OUT/m",
    "merge|Pygmalion-2|llama-plain|--recipe|recipes/card.yaml|--out|OUT/m",
    "merge|llama|llama-plain|--weights|1x3", "merge|llama|--weights|1x3", "merge|llama|x|--oops",
    "merge|llama|llama-plain|--weights|1x3|--weights-for|mlp|--out|OUT/m",
    "bake|llama-plain|--weights|0,0.5,1|--out|OUT/b",
    "bake|llama-rslora|--weights|0,0.5,1|--weights-for|mlp=1x3|--out|OUT/b|--quiet",
    "bake|llama-dora|--weights|0,0.5,1|--out|OUT/b",
    "picture|--weights|0x20,0.5,1x19|--out|OUT/p.png|--base-name|Base $x$|--adapter-name|LoRA",
    "picture|--weights|-0.5,1.5,0.25|--out|OUT/p.svg",
    "picture|--weights|1x3|--out|OUT/p.gif", "picture|--weights|1x3,x|--out|OUT/p.png",
    "recipe|export|recipes/card.yaml", "recipe|export|recipes/llama-terms.yaml|--out|OUT/m.yaml",
    "recipe|import|mergekit.yaml", "recipe|import|mergekit.yaml|--out|OUT/r.yaml",
    "recipe|import|recipes/card.yaml",
    "recipe|import|x.py --base_model_name_or_path llama --peft_model_path llama-plain"
    " --peft_model_weights 0,0.5,1",
    *(f"recipe|preset|{name}|--layers|{layers}" for name in ("OUTALL", "MIDD", "INS", "ALL0.5")
      for layers in (3, 40)),
    "recipe|preset|NONE|--layers|3", "verify|llama", "verify|nowhere", "demo|x", "oops",
)  # fmt: skip
"""Lines of the command line, words apart by |; OUT/ is the case's own folder."""


# What is done with them, by the tree that this process imports.


def carry_out(inputs: Path, out: Path, tree: Path) -> None:
    """Do every case; its results are the folder `out`/NAME."""
    found = Path(importlib.util.find_spec("labkit").origin).resolve()
    if tree.resolve() not in found.parents:
        sys.exit(f"labkit is imported from {found}, and not from {tree}")
    os.chdir(inputs)
    cases = json.loads(Path("cases.json").read_text())
    for case in cases:
        folder = out / case["name"].replace("/", "-")
        folder.mkdir()
        DOINGS[case["do"]](case, Results(folder))


class Results:
    """What a case gives, as files of its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def text(self, name: str, make: Callable[[], Any]) -> Any:
        """Keep what is made as text; or the error's kind and text. Gives what was made."""
        try:
            made = make()
        except Exception as error:  # noqa: BLE001 - whatever it is, the other tree must do so, too
            kind = type(error).__name__
            said = f"{kind}: {error}\n"
            if kind != "LabkitError":
                # By the name of the function alone: modules were moved.
                said += f"in {traceback.extract_tb(error.__traceback__)[-1].name}\n"
            (self.folder / f"{name}.txt").write_text(said, errors="surrogateescape")
            return None
        if hasattr(made, "to_csv"):
            made.to_csv(self.folder / f"{name}.csv", float_format=repr)
        elif isinstance(made, bytes):
            (self.folder / name).write_bytes(made)
        else:
            (self.folder / f"{name}.txt").write_text(f"{made}\n", errors="surrogateescape")
        return made


def do_merge(case: dict[str, Any], results: Results) -> None:
    """Plan, merge, verify, survey and bake one base and one adapter."""
    import labkit as lk

    base, adapter, weights = case["base"], case["adapter"], case["weights"]

    def planned() -> Any:
        term = lk.Term(adapter, lk.Gradient.parse(weights))
        recipe = lk.Recipe(base, [term], case["rest"], case["dtype"], untie=case["untie"])
        return lk.plan(recipe)

    write_merge(planned, case, results)
    if case["untie"]:  # surveys and bakes know of no untied head
        results.text("as it is", lambda: lk.plan(base, adapter, weights, case["rest"]))
    results.text("without rest", lambda: lk.plan(base, adapter, weights))
    results.text("too few weights", lambda: lk.plan(base, adapter, "1x2", 1.0))
    if "another" in case:
        results.text("another base", lambda: lk.plan(case["another"], adapter, weights, 1.0))
    survey_of(case, results)
    if case["dtype"] in ("auto", "float16"):
        scaled = case["dtype"] == "float16"
        baked = results.folder / "baked"
        results.text(
            "bake", lambda: lk.bake(adapter, weights, baked, rest=0.5, alpha_pattern=not scaled)
        )
        results.text("bake of too few", lambda: lk.bake(adapter, "0.5", results.folder / "few"))
    if case["dtype"] == "auto":
        live_of(case, results)


def survey_of(case: dict[str, Any], results: Results) -> None:
    """Every table of one adapter, and some of their figures."""
    import labkit as lk

    base, adapter, weights = case["base"], case["adapter"], case["weights"]
    table = results.text(
        "survey",
        lambda: lk.survey(base, adapter, weights, rest=0.5, dtype=case["dtype"], progress=False),
    )
    results.text("survey without base", lambda: lk.survey(None, adapter, progress=False))
    values = results.text("spectra", lambda: lk.spectra(base, adapter))
    lost = results.text(
        "survival",
        lambda: lk.survival(base, adapter, weights, "bfloat16", rest=0.5, exact=True,
                            progress=False),
    )  # fmt: skip
    overlaps = results.text("overlap", lambda: lk.overlap([adapter, "llama-plain"]))
    if case["base"] not in ("llama", "gpt2") or case["dtype"] != "auto":
        return
    for name, figure in {
        "norms_by_layer": lambda draw: draw(table),
        "heatmap": lambda draw: draw(table, "norm", dark=True),
        "gradient_over_norms": lambda draw: draw(table),
        "singular_values": lambda draw: draw(values),
        "survival_map": lambda draw: draw(lost),
        "overlap_by_layer": lambda draw: draw(overlaps),
        "side_by_side": lambda draw: draw(table, table, ("one", "other")),
    }.items():
        results.text(
            f"{name}.png", lambda name=name, figure=figure: figure(drawing(name))._repr_png_()[0]
        )


def drawing(name: str) -> Callable[..., Any]:
    """A figure's function, from whichever module this version has it in."""
    for module in FIGURES:
        with contextlib.suppress(ImportError):
            found = getattr(importlib.import_module(module), name, None)
            if found is not None:
                return found
    raise LookupError(name)


def live_of(case: dict[str, Any], results: Results) -> None:
    """Logits of a live model at the case's weights."""
    import torch

    import labkit as lk

    def logits() -> bytes:
        model = lk.live(case["base"], case["adapter"], rest=0.5, device="cpu")
        model.weights = case["weights"]
        found = model.logits(torch.arange(3, 19).reshape(1, 16))
        model.free()
        return found.numpy().tobytes()

    with contextlib.redirect_stderr(io.StringIO()):
        results.text("logits.bin", logits)


def do_recipe(case: dict[str, Any], results: Results) -> None:
    """Merge what a recipe says; once more from the recipe that the merge wrote."""
    import labkit as lk

    path = Path("recipes") / f"{case['recipe']}.yaml"
    if write_merge(lambda: lk.plan(lk.Recipe.load(path)), case, results):
        again = results.folder / "merged" / "recipe.yaml"
        results.text("recipe again", lambda: lk.Recipe.load(again).to_yaml())


def write_merge(make: Callable[[], Any], case: dict[str, Any], results: Results) -> bool:
    """Keep all that a plan shows, writes and verifies; tell whether it wrote."""
    import labkit as lk

    plan = results.text("plan", make)
    if plan is None:
        return False
    results.text("ledger", plan.table)
    results.text("plan.html", plan._repr_html_)
    out = Path(case["out"]) if "out" in case else results.folder / "merged"
    options = {"link": case.get("link", False), "hashes": case.get("hashes", True)}
    receipt = results.text(
        "receipt", lambda: plan.write(out, device="cpu", progress=False, **options)
    )
    if receipt is None:
        return False
    results.text("tensors", receipt.table)
    if case.get("dtype") != "float32":
        results.text("verified", lambda: vars(lk.verify(out, device="cpu", progress=False)))
    base = Path(case.get("base", ""))
    linked = [p.name for p in sorted(out.iterdir()) if (base / p.name).exists()
              and p.samefile(base / p.name)]  # fmt: skip
    results.text("linked", lambda: linked)
    return True


def do_command(case: dict[str, Any], results: Results) -> None:
    """Run a line of the command line, in this process; keep what it prints and its status."""
    words = [word.replace("OUT/", f"{results.folder}/") for word in case["words"]]
    printed, said = io.StringIO(), io.StringIO()
    before, sys.argv = sys.argv, ["labkit", *words]
    status: Any = 0
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
            runpy.run_module("labkit", run_name="__main__")
    except SystemExit as error:
        status = error.code
    finally:
        sys.argv = before
    text = f"{' '.join(case['words'])}\n{printed.getvalue()}\n{said.getvalue()}\nstatus {status}"
    results.text("printed", lambda: text)


DOINGS = {"merge": do_merge, "recipe": do_recipe, "command": do_command}


# The comparison.


def differences(old: Path, new: Path) -> Iterator[tuple[str, str]]:
    """Compare two folders of results: each path that differs, and how."""
    names = sorted({str(path.relative_to(root)) for root in (old, new) for path in files_of(root)})
    for name in names:
        one, other = old / name, new / name
        if not (one.exists() and other.exists()):
            yield name, f"only in the {'old' if one.exists() else 'new'} tree"
            continue
        before, after = one.read_bytes(), other.read_bytes()
        if before == after:
            continue
        if one.suffix not in TEXTS:
            place = next(
                (
                    i
                    for i, pair in enumerate(zip(before, after, strict=False))
                    if len(set(pair)) > 1
                ),
                min(len(before), len(after)),
            )
            yield name, f"{len(before)} and {len(after)} bytes, the first difference at {place}"
            continue
        lines = [of_every_run(text).splitlines() for text in (before, after)]
        changed = [
            line
            for line in difflib.unified_diff(*lines, lineterm="", n=0)
            if not line.startswith(("---", "+++", "@@"))
        ]
        if changed:
            more = [f"… {len(changed) - MOST_LINES} more"] if len(changed) > MOST_LINES else []
            yield name, "\n    ".join(["", *changed[:MOST_LINES], *more])


def files_of(root: Path) -> Iterator[Path]:
    return (path for path in root.rglob("*") if path.is_file())


def of_every_run(text: bytes) -> str:
    """A text without what differs between two runs of one version."""
    said = text.decode(errors="replace")
    for pattern, instead in OF_ONE_RUN:
        said = re.sub(pattern, instead, said, flags=re.MULTILINE)
    return re.sub(DIGESTS, lambda run: "".join(sorted(run[0].splitlines(True))), said)


def kind_of(path: str) -> str:
    """The row of the table that a file counts in."""
    name = path.split("/")[-1]
    if name in ("receipt.json", "README.md", "recipe.yaml"):
        return name
    return {".safetensors": "tensors", ".csv": "tables", ".png": "pictures", ".svg": "pictures",
            ".bin": "logits", ".txt": "texts, errors among them"}.get(
        Path(name).suffix, "other files")  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path, help="a checkout")
    parser.add_argument("new", type=Path, help="another")
    parser.add_argument("--only", default="", help="only cases whose name has this text")
    given = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory(prefix="labkit-same-bytes-") as folder:
        root = Path(folder).resolve()
        inputs = root / "inputs"
        inputs.mkdir()
        began = time.perf_counter()
        cases = [case for case in make_inputs(inputs) if given.only in case["name"]]
        (inputs / "cases.json").write_text(json.dumps(cases))
        print(f"{len(cases)} cases made in {time.perf_counter() - began:.0f} s", flush=True)
        for which, tree in (("old", given.old), ("new", given.new)):
            # Both work at one path: names of folders are part of recipes and texts.
            (root / "out").mkdir()
            began = time.perf_counter()
            environment = os.environ | {
                "PYTHONPATH": str(tree.resolve()), "LABKIT_CACHE": str(root / "cache"),
                "COLUMNS": "120", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
            }  # fmt: skip
            command = [sys.executable, "-P", str(Path(__file__).resolve()), "--carry-out"]
            command += [str(inputs), str(root / "out"), str(tree)]
            subprocess.run(command, env=environment, check=True)
            (root / "out").rename(root / which)
            shutil.rmtree(root / "cache", ignore_errors=True)
            print(f"{which} tree: {time.perf_counter() - began:.0f} s", flush=True)
        found = defaultdict(list)
        for path, how in differences(root / "old", root / "new"):
            found[kind_of(path)].append(f"{path}: {how}")
        counts = Counter(kind_of(str(path.relative_to(root / "old")))
                         for path in files_of(root / "old"))  # fmt: skip
        refused = sum(path.suffix == ".txt" and path.read_bytes().startswith(b"LabkitError: ")
                      for path in files_of(root / "old"))  # fmt: skip
    print("\n| | compared | different |\n|---|---:|---:|")
    for kind in sorted({*counts, *found}):
        print(f"| {kind} | {counts[kind]} | {len(found[kind])} |")
    print(f"\n{refused} of the texts are refusals")
    for each in found.values():
        print("", *each, sep="\n")
    return bool(any(found.values()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--carry-out"]:
        carry_out(*map(Path, sys.argv[2:5]))
    else:
        sys.exit(main())
