import os
import signal
import subprocess
import sys
import time

import pytest

import labkit as lk


def labkit(*arguments, cwd=None):
    command = [sys.executable, "-m", "labkit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def error_of(*arguments):
    done = labkit(*arguments)
    assert done.returncode == 2, done
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("labkit: error: ")
    assert "Traceback" not in done.stderr
    return last


def test_help_lists_the_commands():
    done = labkit("--help")
    assert done.returncode == 0
    for command in ("demo", "inspect", "merge", "picture", "verify"):
        assert f"  {command} " in done.stdout
    assert labkit().stdout == done.stdout


def test_merge_and_verify(tiny_base, tiny_adapter, tmp_path):
    out = tmp_path / "out"
    done = labkit("merge", tiny_base, tiny_adapter, "--weights", "0x2,0.5,1", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "14 of 38 tensors" in done.stdout
    assert f"written  {out}" in done.stdout
    assert "every byte equal" in labkit("verify", out).stdout
    again = tmp_path / "again"
    done = labkit("merge", "--recipe", out / "recipe.yaml", "--out", again, "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for file in out.glob("*.safetensors"):
        assert (again / file.name).read_bytes() == file.read_bytes()
    options = ("--weights", "0x2,0.5,0.25", "--from", out, "--out", again, "--overwrite")
    done = labkit("merge", tiny_base, tiny_adapter, *options)
    assert f"reused   7 of the 14 changed tensors, from {out}" in done.stdout, done


def test_what_a_recipe_reads_is_said_before(tiny_base, tiny_adapter, tmp_path):
    out = tmp_path / "out"
    labkit("merge", tiny_base, tiny_adapter, "--weights", "1x4", "--out", out, "--quiet")
    reads = [f"labkit: reads {tiny_base}", f"labkit: reads {tiny_adapter}"]
    for command in (("verify", out), ("merge", "--recipe", out / "recipe.yaml", "--dry-run")):
        assert labkit(*command).stderr.splitlines()[:2] == reads
    done = labkit("verify", out, "--base", tiny_base)
    assert [line for line in done.stderr.splitlines() if "reads" in line] == reads[1:]
    recipe = out / "recipe.yaml"
    recipe.write_text(
        recipe.read_text().replace(os.path.relpath(tiny_adapter, out), "owner/lora", 1)
    )
    assert "names owner/lora from the hub, which is not on this machine; let it be" in error_of(
        "verify", out
    )
    assert "and the hub did not give it" in error_of("verify", out, "--yes")


def test_dry_run_writes_nothing(tiny_base, tiny_adapter, tmp_path):
    done = labkit(
        "merge", tiny_base, tiny_adapter, "--weights", "0.5x4", "--weights-for", "mlp=0x4",
        "--dry-run", cwd=tmp_path,
    )  # fmt: skip
    assert "16 of 38 tensors" in done.stdout
    assert os.listdir(tmp_path) == []


def test_picture(tmp_path):
    assert labkit("picture", "--weights", "0x19,0.5,1x20", "--out", tmp_path / "a.svg").stdout
    assert b"<svg" in (tmp_path / "a.svg").read_bytes()


def test_the_picture_of_a_recipe_has_every_lora(tiny_base, tiny_adapter, tmp_path):
    base, lora = lk.Checkpoint(tiny_base), lk.Adapter(tiny_adapter)
    terms = [lk.Term(lora, "0,0,1,1"), lk.Term(lora, "0,1,0,0", {"mlp": "0.5x4"})]
    lk.Recipe(base, terms).save(tmp_path / "recipe.yaml")
    picture = tmp_path / "both.svg"
    assert labkit("picture", "--recipe", tmp_path / "recipe.yaml", "--out", picture).stdout
    drawn = picture.read_text()
    assert drawn.count("tiny-lora") >= 2
    both = ("--weights", "0,1", "--recipe", "recipe.yaml", "--out", picture)
    for given in (both, ("--out", picture)):
        assert "give either --weights, or --recipe" in error_of("picture", *given)


def test_errors_are_one_line(tiny_base, tiny_adapter, tmp_path):
    pair = (tiny_base, tiny_adapter)
    out = ("--out", tmp_path / "x")
    assert "3 weights for 4 layers" in error_of("merge", *pair, "--weights", "1x3", *out)
    assert "'a', is not a number" in error_of("merge", *pair, "--weights", "0,a", *out)
    assert "needs --out DIR" in error_of("merge", *pair, "--weights", "1x4")
    assert "needs BASE, ADAPTER and --weights" in error_of("merge", tiny_base)
    assert "leave out --weights" in error_of(
        "merge", "--recipe", "r.yaml", "--weights", "1x4", *out
    )
    assert "not of the form PATTERN=W" in error_of(
        "merge", *pair, "--weights", "1x4", "--weights-for", "mlp", *out
    )
    assert "No such option: --wights" in error_of("merge", *pair, "--wights", "1x4")
    assert "Invalid value for '--rest'" in error_of("merge", *pair, "--rest", "a")
    assert "No such command 'frob'" in error_of("frob")
    assert "is no folder; name the folder of a merged" in error_of("verify", tmp_path / "no")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_merge_leaves_nothing(tiny_base, tiny_adapter, tmp_path, stop):
    # The merge waits in its first piece, so that the signal surely finds it at work.
    code = (
        "import os, signal, time, labkit.writing.engine as engine\n"
        "merge = engine.Engine.merge\n"
        # A shell's background jobs ignore Ctrl-C, and so would this test when it is run in one.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        # Two threads say it, each in one piece.
        "def slow(*a):\n    os.write(1, b'at work\\n'); time.sleep(0.5); return merge(*a)\n"
        "engine.Engine.merge = slow\n"
        "from labkit.cli.app import main\nmain()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "merge", str(tiny_base), str(tiny_adapter), "--weights",
         "1x4", "--out", str(tmp_path / "out"), "--quiet", "--device", "cpu"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "at work\n"
    assert any(name.startswith(".out.labkit-") for name in os.listdir(tmp_path))
    time.sleep(0.1)
    process.send_signal(stop)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip() == "labkit: error: stopped; nothing was left behind"
    assert os.listdir(tmp_path) == []


def test_the_version_is_the_projects():
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert lk.__version__ == project["version"]


def test_a_recipe_that_cannot_be_written_there(tiny_base, tiny_adapter, tmp_path):
    out = tmp_path / "out"
    labkit("merge", tiny_base, tiny_adapter, "--weights", "0x2,1x2", "--out", out, "--quiet")
    exported = labkit("recipe", "export", out / "recipe.yaml")
    assert (exported.returncode, exported.stderr) == (0, "")
    nowhere = tmp_path / "no" / "such" / "folder.yml"
    said = error_of("recipe", "export", out / "recipe.yaml", "--out", nowhere)
    assert "folder.yml" in said
    assert "No such file or directory" in said
    assert not nowhere.parent.exists()


def test_versions_and_short_help():
    assert labkit("--version").stdout == f"labkit {lk.__version__}\n"
    assert labkit("-h").stdout == labkit("--help").stdout
    assert "--install-completion" in labkit("-h").stdout
    for command in (
        "demo", "inspect", "merge", "push", "bake", "extract", "resize", "combine", "picture",
        "verify",
    ):  # fmt: skip
        assert f"Example: labkit {command} " in labkit(command, "-h").stdout
    for command in ("import", "export", "preset"):
        said = labkit("recipe", command, "-h").stdout
        assert f"Example: labkit recipe {command} " in said


def test_weights_as_people_write_them(tiny_base, tiny_adapter, tmp_path):
    def merged(weights, *more):
        out = tmp_path / f"out {len(list(tmp_path.iterdir()))}"
        done = labkit(
            "merge", tiny_base, tiny_adapter, "--weights", weights, "--out", out, "--quiet", *more
        )
        assert done.returncode == 0, done.stderr
        (term,) = lk.Recipe.load(out / "recipe.yaml").terms
        return term

    assert merged("0.5").weights == lk.Gradient.constant(4, 0.5)
    assert merged("ramp(1,2)").weights == lk.Gradient.ramp(4, 1, 2)
    assert merged("OUTALL").weights == lk.preset("OUTALL", 4)
    term = merged("0,1", "--stretch", "--weights-for", "mlp=0.25")
    assert term.weights == lk.Gradient([0, 1]).resample(4)
    assert term.weights_for == {"mlp": lk.Gradient.constant(4, 0.25)}
    assert labkit("inspect", tiny_base, tiny_adapter, "--weights", "0.5").returncode == 0
    for option in (("--weights", "0,1"), ("--weights", "1", "--weights-for", "mlp=0,1")):
        said = error_of("merge", tiny_base, tiny_adapter, *option, "--dry-run")
        assert " has 2 weights for 4 layers; write one for each layer, one number for all" in said
        assert said.endswith("or add --stretch")


def test_a_method_by_its_name(tiny_base, tiny_adapter, tmp_path):
    out = tmp_path / "out"
    said = labkit(
        "merge", tiny_base, tiny_adapter, "--weights", "0.5", "--method", "ties", "--out", out
    ).stdout
    assert "ties (density 0.2, convention peft, scale 1.0)" in said
    assert "\n- Method: ties (density 0.2, " in (out / "README.md").read_text()
    assert labkit("verify", out).returncode == 0
    again = error_of("merge", "--recipe", out / "recipe.yaml", "--method", "dare", "--dry-run")
    assert "leave out --dtype, --method and --untie" in again
    alone = error_of("merge", tiny_base, tiny_adapter, "--weights", "1", "--method", "linear")
    assert "the weight 1 of one term alone would change nothing" in alone
    assert "'tie' is no method of merging" in error_of(
        "merge", tiny_base, tiny_adapter, "--weights", "1", "--method", "tie"
    )


def test_verify_says_it_in_a_sentence(tiny_base, tiny_adapter, tmp_path):
    out = tmp_path / "out"
    labkit("merge", tiny_base, tiny_adapter, "--weights", "1", "--out", out, "--quiet")
    said = labkit("verify", out).stdout.splitlines()
    assert said[0] == f"{out} is, byte for byte, what its recipe makes."


def test_a_lora_out_of_two_models_and_of_loras(tiny_base, tiny_adapter, second_adapter, tmp_path):
    model = tmp_path / "model"
    made = labkit("merge", tiny_base, tiny_adapter, "--weights", "1x4", "--out", model,
                  "--dtype", "float32")  # fmt: skip
    assert made.returncode == 0, made.stderr
    out = tmp_path / "extracted"
    made = labkit("extract", model, tiny_base, "--out", out)
    assert made.returncode == 0, made.stderr
    assert "made     model less tiny-llama\nrank     4, of 28 modules\n" in made.stdout
    assert labkit("resize", out, "--rank", "2", "--out", tmp_path / "small").returncode == 0
    both = ("combine", out, second_adapter, "--weights", "1x4", "--weights", "0x2,1,1")
    made = labkit(*both, "--out", tmp_path / "both", "--quiet")
    assert (made.returncode, made.stdout, made.stderr) == (0, "", "")
    made = labkit(*both[:5], "--out", tmp_path / "again")
    assert made.returncode == 2
    assert "2 adapters and 1 times --weights; give one for each, in order" in made.stderr
    # A full model is a term as well.
    made = labkit("merge", tiny_base, model, "--weights", "0x2,0.5,1", "--rest", "0", "--out",
                  tmp_path / "half")  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert "model    model, mean weight 0.38" in made.stdout


def test_an_import_says_where_versions_of_mergekit_differ(tmp_path):
    from tests.tiny import make_adapter, make_base

    base = make_base(tmp_path / "base", tie_word_embeddings=False)
    lora = make_adapter(tmp_path / "lora", base, target_modules=["up_proj", "lm_head"])
    path, out = tmp_path / "mergekit.yaml", tmp_path / "recipe.yaml"
    path.write_text(
        f"merge_method: task_arithmetic\nbase_model: {base}\nmodels:\n"
        f"- {{model: {base}+{lora}, parameters: {{weight: [0, 1]}}}}\n"
    )
    done = labkit("recipe", "import", path, "--out", out)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("labkit: note: behind the layers (final norm, head) the first ")
    assert lk.Recipe.load(out).rest == 0
