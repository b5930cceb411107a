"""lm-evaluation-harness on a live model: its tasks at many gradients, and no checkpoint written."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.errors import LabkitError, shown
from labkit.files.paths import user_path
from labkit.inference.live_model import LiveModel, Mix
from labkit.inference.loading import load_tokenizer
from labkit.probing.evaluation import BASE, FULL, Row, mix_of, name_taken
from labkit.probing.intervals import LEVEL, Bootstrap, Estimate
from labkit.quiet import quiet

if TYPE_CHECKING:
    import pandas as pd

OWN_TASKS = Path(__file__).parents[1] / "demonstration"
"""Where the tasks `stepwise` and `stepwise_answers` are."""
ROWS = 8

# How tasks make their number from a mean over questions: the mean itself, bits of nats, and a
# perplexity; and whether differences of means become differences of numbers.
READINGS: tuple[tuple[Callable[[float], float], bool], ...] = (
    (lambda mean: mean, True),
    (lambda mean: -mean / math.log(2), True),
    (lambda mean: math.exp(min(-mean, 700.0)), False),
)


def harness(
    model: LiveModel,
    tasks: str | Sequence[str],
    gradients: Mapping[str, Row],
    *,
    limit: int | None = None,
    shots: int | None = None,
    folder: str | Path | None = None,
    rows: int = ROWS,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure gradients on tasks of lm-evaluation-harness, on the live model.

        lk.harness(model, ["stepwise", "arc_easy"], {"late": "0x15,1x15"}, limit=100)

    The harness's own code reads the tasks and runs the model (`lm_eval.models.huggingface`), so
    that the numbers are those of `lm_eval` on the merge's folder, but for the dtype of the live
    model. Needs `pip install 'labkit[eval]'`. `stepwise` (exact match of answers) and
    `stepwise_answers` (bits for each byte of the right answers) come with labkit and run offline.

    Args:
        model: the live model. While a gradient is measured, nothing else can use it.
        tasks: names of tasks or groups.
        gradients: name -> gradient, or a recipe, as in `evaluate`. Base and full LoRA are always
            among the rows.
        limit: so many questions of each task; all if left out. The first ones, as the harness has.
        shots: examples before each question; as the task says if left out.
        folder: where tasks of your own are, as YAML files.
        rows: questions of a batch.
        seed: of the intervals' draws.

    Returns:
        as `evaluate`: `text` is the task; `metric` the task's, with its filter where that has a
        name; `passages` counts questions. Intervals are bootstraps over questions, those of
        `from_base` paired. They are missing where the harness computes a metric from all questions
        at once, and that of the difference also for perplexities.

    Raises:
        LabkitError: lm_eval is missing, an unknown task, one that cannot be read, a name that
            stands for one of the rows that are always there, or a gradient of the wrong length.
    """
    import pandas as pd

    mixes: dict[str, Mix] = {BASE: model.mix(0.0), FULL: model.mix(1.0)}
    for name, weights in gradients.items():
        if name in (BASE, FULL):
            raise name_taken(name)
        mixes[name] = mix_of(model, weights)
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    if not names:
        raise LabkitError("no tasks to measure; name one, such as stepwise")
    with quiet("lm_eval"):
        lm_eval = _lm_eval()
        manager = _manager(names, folder)
        found = {}
        for name, mix in mixes.items():
            with model.held(mix) as loaded:
                measured = lm_eval.models.huggingface.HFLM(
                    pretrained=loaded,
                    tokenizer=load_tokenizer(model.base),  # it is given a padding token
                    backend="causal",
                    batch_size=rows,
                )
                try:
                    found[name] = lm_eval.simple_evaluate(
                        measured,
                        tasks=names,
                        task_manager=manager,
                        num_fewshot=shots,
                        limit=limit,
                        bootstrap_iters=0,
                    )
                except (OSError, ValueError, KeyError, ImportError) as error:
                    raise LabkitError(
                        f"the harness cannot run {', '.join(map(shown, names))}: "
                        f"{type(error).__name__}: {shown(error)}"
                    ) from error
    answers = {name: _answers(one) for name, one in found.items()}
    table = []
    for key, base in answers[BASE].items():
        for name, of_gradient in answers.items():
            mine = of_gradient[key]
            estimate, change = _intervals(mine, base, seed)
            table.append(
                {
                    "gradient": name,
                    "text": key[0],
                    "metric": key[1],
                    "estimate": mine.value,
                    "low": estimate.low,
                    "high": estimate.high,
                    "from_base": mine.value - base.value,
                    "from_base_low": change.low,
                    "from_base_high": change.high,
                    "mean_weight": mixes[name].mean,
                    "passages": len(mine.sums),
                    "tokens": math.nan,  # the harness does not say
                    "method": f"lm_eval {lm_eval.__version__}",
                }
            )
    frame = pd.DataFrame(table)
    frame.attrs["level"] = LEVEL
    return frame


@dataclass(frozen=True)
class _Answers:
    """What the harness found for one metric of a task.

    Attributes:
        value: the number.
        sums: what each question adds to it.
        weights: what each question counts: 1, or the bytes or words of a text.
        reading: one of `READINGS`, by which `value` follows from the two; None where none does.
    """

    value: float
    sums: np.ndarray
    weights: np.ndarray
    reading: tuple[Callable[[float], float], bool] | None


def _answers(found: Mapping[str, Any]) -> dict[tuple[str, str], _Answers]:
    answers = {}
    for task, metrics in found["results"].items():
        samples = found["samples"].get(task, ())
        for key, value in metrics.items():
            metric, comma, chosen = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            of_questions = [one[metric] for one in samples if one["filter"] == chosen]
            name = metric if chosen == "none" else f"{metric} ({chosen})"
            answers[task, name] = _read(float(value), of_questions)
    return answers


def _read(value: float, of_questions: Sequence[Any]) -> _Answers:
    pairs = [tuple(one) if isinstance(one, (tuple, list)) else (one, 1.0) for one in of_questions]
    if not pairs or not all(
        len(pair) == 2 and all(isinstance(part, (int, float)) for part in pair) for pair in pairs
    ):
        return _Answers(value, np.zeros(len(pairs)), np.ones(len(pairs)), None)
    sums, weights = np.array(pairs, dtype=np.float64).T
    mean = float(sums.sum() / weights.sum())
    for reading in READINGS:
        if math.isclose(reading[0](mean), value, rel_tol=1e-9, abs_tol=1e-12):
            return _Answers(value, sums, weights, reading)
    return _Answers(value, sums, weights, None)


def _intervals(mine: _Answers, base: _Answers, seed: int) -> tuple[Estimate, Estimate]:
    """The interval of a number, and that of its difference to the base's."""
    unknown = Estimate(math.nan, math.nan, math.nan)
    if mine.reading is None or base.reading is None:
        return unknown, unknown
    read, linear = mine.reading
    draws = Bootstrap([str(number) for number in range(len(mine.sums))], mine.weights, seed)
    change = _through(read, draws.estimate(mine.sums - base.sums)) if linear else unknown
    return _through(read, draws.estimate(mine.sums)), change


def _through(read: Callable[[float], float], found: Estimate) -> Estimate:
    """An estimate of a mean as one of the number made from it; some readings turn it around."""
    low, high = sorted((read(found.low) + 0.0, read(found.high) + 0.0))  # never -0.0
    return Estimate(read(found.value), low, high)


def _lm_eval() -> Any:
    try:
        import lm_eval
        import lm_eval.models.huggingface
    except ImportError as error:
        raise LabkitError(
            "lm-evaluation-harness is not installed; install it with pip install 'labkit[eval]'"
        ) from error
    return lm_eval


def _manager(names: Sequence[str], folder: str | Path | None) -> Any:
    """What finds tasks; the harness's own thousands are only read where one is wanted."""
    from lm_eval.tasks import TaskManager

    places = [OWN_TASKS, *([user_path(folder)] if folder is not None else [])]
    manager = TaskManager(include_path=places, include_defaults=False)
    if not set(names) <= set(manager.all_tasks):
        manager = TaskManager(include_path=places)
    for name in names:
        if name not in manager.all_tasks:
            raise LabkitError(
                f"the harness knows no task {shown(name)!r}; lm_eval ls tasks lists them, and "
                "labkit adds stepwise and stepwise_answers"
            )
    return manager
