"""Searches where no gradient goes: Optuna over a family's few parameters, by forward passes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from labkit.errors import LabkitError
from labkit.inference.live_model import LiveModel
from labkit.probing.families import Cells, Family
from labkit.probing.searching import Search, Wanted

MOST_PARAMETERS = 24


def search_anchors(
    search: Search,
    wanted: Wanted,
    family: Family,
    start: Cells,
    evaluations: int,
    objective: Callable[[LiveModel], float] | None,
    seed: int,
) -> None:
    """Try so many lists of a family; the tree-structured Parzen estimator says which.

    Args:
        search: what is searched.
        wanted: NLL, KL and bounds; with an objective, the bounds alone.
        family: the family; its parameters are few.
        start: the list that is tried first.
        evaluations: how many are tried.
        objective: what is minimised in place of NLL and KL; the layer weights are in force then.
        seed: of the sampler.

    Raises:
        LabkitError: Optuna is not installed, or the family has too many parameters.
        Stopped: it was asked to.
    """
    try:
        import optuna
    except ImportError:
        raise LabkitError(
            'the method optuna needs Optuna, which is not installed: pip install "labkit[optuna]"'
        ) from None
    bases = search.weights.bases(family)
    if len(bases[0]) > MOST_PARAMETERS:
        raise LabkitError(
            f"the method optuna searches {MOST_PARAMETERS} parameters at most, and the family "
            f"{family} has {len(bases[0])} here; use family='anchors', by='layer'"
        )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    here = np.linalg.lstsq(bases[-1].T, start, rcond=None)[0]
    first = {f"w{number}": float(value) for number, value in enumerate(here)}
    study.enqueue_trial({**first, "place": len(bases) - 1})

    def judge(trial: optuna.Trial) -> float:
        place = trial.suggest_int("place", 0, len(bases) - 1) if len(bases) > 1 else 0
        values = [trial.suggest_float(f"w{number}", *wanted.bounds) for number in range(len(here))]
        return search.judge(np.array(values) @ bases[place], wanted, family, objective)

    study.optimize(judge, n_trials=evaluations)
