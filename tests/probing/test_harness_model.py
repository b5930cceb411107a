"""The harness on a live model gives the harness's own numbers of the folder that is written."""

import math
import sys
import textwrap

import numpy as np
import pandas as pd
import pytest

import labkit as lk
from labkit.demonstration.stepwise import distinct_questions, harness_bits_per_byte
from labkit.errors import LabkitError
from labkit.probing.harness_model import _intervals, _read

SHAPE = "0,0.5,1,-0.5"
OWN = {
    "whole_answers": """
        output_type: loglikelihood_rolling
        doc_to_text: ""
        doc_to_target: "{{answer}}"
        metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}]
        """,
    "written": """
        output_type: generate_until
        doc_to_text: "{{prompt}}"
        doc_to_target: ""
        process_results: !function documents.letters
        generation_kwargs: {until: ["~~"], max_gen_toks: 20}
        metric_list: [{metric: letters, aggregation: mean, higher_is_better: true}]
        """,
}
DOCUMENTS = """
from labkit.demonstration.stepwise import harness_documents as documents

def letters(document, results):
    return {"letters": sum(place * ord(letter) for place, letter in enumerate(results[0]))}
"""


def installed():
    return pytest.importorskip("lm_eval", reason="install labkit[eval]")


def own_tasks(folder):
    """Tasks in a folder of the user's own: texts as a whole, and a number of what is generated."""
    folder.mkdir()
    for name, text in OWN.items():
        common = f"task: {name}\ncustom_dataset: !function documents.documents\ntest_split: test\n"
        (folder / f"{name}.yaml").write_text(common + textwrap.dedent(text))
    (folder / "documents.py").write_text(DOCUMENTS)
    return folder


def of_the_folder(lm_eval, folder, tasks, more):
    """lm_eval's own model of a folder, in float32."""
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from labkit.probing.harness_model import OWN_TASKS

    model = HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=2)
    manager = TaskManager(include_path=[OWN_TASKS, more], include_defaults=False)
    return lm_eval.simple_evaluate(model, tasks=tasks, task_manager=manager, limit=4)["results"]


@pytest.mark.filterwarnings("ignore")  # of the harness and what it imports
def test_the_live_model_has_the_numbers_of_the_folder(tmp_path, loud, loud_base, loud_adapter):
    lm_eval = installed()
    tasks = ["stepwise", "stepwise_answers", "whole_answers", "written"]
    more = own_tasks(tmp_path / "tasks")
    table = lk.harness(loud, tasks, {"mine": SHAPE}, limit=4, folder=more, rows=2)
    adapter = lk.Adapter(loud_adapter)
    for name, weights in (("base", "0x4"), ("full LoRA", "1x4"), ("mine", SHAPE)):
        folder = tmp_path / name
        terms = [lk.Term(adapter, lk.Gradient.parse(weights))]
        lk.plan(lk.Recipe(loud_base, terms, dtype="float32")).write(folder, progress=False)
        found = of_the_folder(lm_eval, folder, tasks, more)
        rows = table[table["gradient"] == name].set_index(["text", "metric"])["estimate"]
        assert len(rows) == 5
        for (task, metric), expected in (
            (("stepwise", "exact_match (last-line)"), "exact_match,last-line"),
            (("stepwise_answers", "bits_per_byte"), "bits_per_byte,none"),
            (("whole_answers", "word_perplexity"), "word_perplexity,none"),
            (("written", "letters"), "letters,none"),
            (("whole_answers", "byte_perplexity"), "byte_perplexity,none"),
        ):
            assert rows[task, metric] == pytest.approx(found[task][expected], rel=2e-5)
    assert (table["passages"] == 4).all()
    # The three models write different texts; what each writes was compared above.
    assert table[table["metric"] == "letters"]["estimate"].nunique() == 3
    bits = table[table["metric"] == "bits_per_byte"].set_index("gradient")
    assert (bits["low"] < bits["estimate"]).all()
    assert (bits["estimate"] < bits["high"]).all()
    assert bits["from_base"]["base"] == bits["from_base_low"]["base"] == 0
    assert bits["from_base"]["mine"] == pytest.approx(
        bits["estimate"]["mine"] - bits["estimate"]["base"]
    )
    assert bits["mean_weight"]["mine"] == pytest.approx(0.25)
    # The weights in force before are so again.
    assert loud.weights == lk.Gradient.constant(4)
    with pytest.raises(LabkitError, match="the harness knows no task 'no_such_task'; lm_eval ls"):
        lk.harness(loud, "no_such_task", {})


def test_what_cannot_be_asked(loud, monkeypatch):
    with pytest.raises(LabkitError, match="'base' is that of a row which is always there"):
        lk.harness(loud, "stepwise", {"base": "1x4"})
    with pytest.raises(LabkitError, match="2 weights for 4 layers"):
        lk.harness(loud, "stepwise", {"short": "1,1"})
    with pytest.raises(LabkitError, match="no tasks to measure; name one, such as stepwise"):
        lk.harness(loud, [], {})
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(LabkitError, match=r"install it with pip install 'labkit\[eval\]'"):
        lk.harness(loud, "stepwise", {})


def test_the_tasks_ask_what_was_never_trained_on():
    documents = distinct_questions()
    assert len({one["prompt"] for one in documents}) == len(documents) == 361
    for one in documents:
        assert one["prompt"].startswith("### Instruction:\n")
        assert one["answer"].splitlines()[-1] == f"Answer: {one['result']}"
    assert harness_bits_per_byte({"answer": "é1"}, [(-2.0, True)]) == {"bits_per_byte": (-2.0, 3)}


def test_intervals_of_what_tasks_make_of_questions():
    rng = np.random.default_rng(3)
    hits, base_hits = rng.random(200) < 0.6, rng.random(200) < 0.4
    mine = _read(float(hits.mean()), hits.astype(float).tolist())
    base = _read(float(base_hits.mean()), base_hits.astype(float).tolist())
    estimate, change = _intervals(mine, base, 0)
    # Against the normal approximation of a share and of a paired difference.
    half = 1.96 * math.sqrt(mine.value * (1 - mine.value) / 200)
    assert estimate.low == pytest.approx(mine.value - half, abs=0.015)
    assert estimate.high == pytest.approx(mine.value + half, abs=0.015)
    pairs = pd.Series(hits.astype(float) - base_hits)
    assert change.value == pytest.approx(pairs.mean())
    assert change.low == pytest.approx(pairs.mean() - 1.96 * pairs.sem(), abs=0.015)
    # A ratio of sums, in bits, and the perplexity of the same.
    logs, sizes = -rng.gamma(4, 10, 200), rng.integers(20, 60, 200)
    pairs = list(zip(logs.tolist(), sizes.tolist(), strict=True))
    mean = logs.sum() / sizes.sum()
    bits = _read(-mean / math.log(2), pairs)
    perplexity = _read(math.exp(-mean), pairs)
    of_bits, no_change = _intervals(bits, bits, 0)
    of_perplexity, unknown = _intervals(perplexity, perplexity, 0)
    assert of_bits.low < bits.value < of_bits.high
    assert (no_change.low, no_change.high) == (0, 0)
    assert of_perplexity.low == pytest.approx(2**of_bits.low)
    assert of_perplexity.high == pytest.approx(2**of_bits.high)
    assert math.isnan(unknown.low)
    # What is made of all questions at once, such as an F1, and what no question is known of.
    for other in (_read(0.5, [(1, 0), (1, 1)] * 2), _read(0.5, [["a", "b"]]), _read(0.5, [])):
        assert math.isnan(_intervals(other, other, 0)[0].low)
