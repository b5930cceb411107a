"""Warns where a text is one that an adapter was trained on: a gain on it says little about others.

Such text is recognised as Brown et al. did ("Language Models are Few-Shot Learners", 2020, arXiv
2005.14165, appendix C): by runs of 13 words that stand in both.
"""

from __future__ import annotations

import re
import warnings
from functools import cache
from pathlib import Path

from labkit.errors import shown
from labkit.files.small_files import read_text
from labkit.inference.live_model import LiveModel
from labkit.probing.texts import LONGEST_FILE, Texts

RUN = 13
"""Words that make a run."""
SHARE = 0.5
"""A passage is a known one when so much of its runs stand in the training text."""


def warn_of_training_text(model: LiveModel, texts: Texts) -> None:
    """Warn where passages stand in a text that one of the model's adapters was trained on.

    What adapters were trained on is known where `Adapter.trained_on` names files, as the demo's do.
    Passages of fewer than 13 words are not judged.
    """
    for adapter in model.adapters:
        known = frozenset[int]().union(*(_runs_of_file(Path(file)) for file in adapter.trained_on))
        if not known:
            continue
        found = 0
        for passage in texts:
            runs = _runs(passage.text)
            found += bool(runs) and len(runs & known) >= SHARE * len(runs)
        if found:
            warnings.warn(
                f"{found} of {len(texts)} passages of {shown(texts.name)!r} stand in the text that "
                f"{shown(adapter.name)} was trained on; a gain on them says little about others, "
                "so measure on passages that it has not seen",
                stacklevel=2,
            )


@cache
def _runs_of_file(file: Path) -> frozenset[int]:
    return _runs(read_text(file, "training text", LONGEST_FILE))


def _runs(text: str) -> frozenset[int]:
    words = re.findall(r"\w+", text.casefold())
    return frozenset(hash(tuple(words[i : i + RUN])) for i in range(len(words) - RUN + 1))
