"""Renders chat templates in a process of their own, which has an end.

A chat template is a program that comes with a tokenizer. Jinja's sandbox keeps it from files and
from Python, but not from looping without end or from filling the memory, and nothing can stop it in
the process that runs it. So a process renders templates for as long as labkit runs. The system ends
it when a template takes too much, and the next template gets a new one.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from labkit.errors import LabkitError, shown

MOST_SECONDS = 2
"""Processor time that one template may take; others take some thousandths."""
MOST_MEMORY = 1 << 30
"""Bytes that a template may take, where the system holds to that (Linux)."""
LONGEST_TEXT = 1_000_000
"""Characters of what a template may write."""


class _Renderer:
    """The process, which starts with the first template."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        atexit.register(self.end)

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Send a question and wait for its answer; what is missing of one says that it ended."""
        with self._lock:
            if self._process is None:
                self._process = _started()
            try:
                answer = _exchange(self._process, json.dumps(question, default=str).encode())
            except BaseException:
                self.end()  # an answer that nobody reads would be taken for the next one's
                raise
            if not answer:
                self.end()
                return {}
            return dict(json.loads(answer))

    def end(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


_renderer = _Renderer()


def rendered(
    template: str, prompt: str, tokens: dict[str, Any], turns: Sequence[tuple[str, str]] = ()
) -> str:
    """What a chat template makes of a prompt, up to where the answer begins.

    Args:
        template: the template.
        prompt: what the user says.
        tokens: the tokenizer's special tokens by name, which templates use.
        turns: what the user and the model said before, in turns.

    Raises:
        LabkitError: a template that fails, takes too long, fills the memory or writes without end.
    """
    messages = [
        {"role": role, "content": content}
        for turn in turns
        for role, content in zip(("user", "assistant"), turn, strict=True)
    ]
    messages.append({"role": "user", "content": prompt})
    answer = _renderer.ask({"template": template, "messages": messages, "tokens": tokens})
    if "text" in answer:
        return str(answer["text"])
    reason = answer.get("error") or (
        f"it took more than {MOST_SECONDS} s of the processor or {MOST_MEMORY >> 30} GB of memory"
    )
    raise LabkitError(
        f"the model's chat template cannot be used: {shown(reason)}; choose another prompt format, "
        "or correct the template in the tokenizer's folder"
    )


def _started() -> subprocess.Popen[bytes]:
    """Start the process, which finds the modules that this one finds.

    Raises:
        LabkitError: the system does not start one.
    """
    here = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([here, *filter(None, sys.path)])
    try:
        return subprocess.Popen(  # noqa: S603 - Python itself
            [sys.executable, "-P", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is meant for labkit
        )
    except OSError as error:
        raise LabkitError(
            f"cannot start a process for the model's chat template: {error.strerror}; choose "
            "another prompt format"
        ) from error


def _exchange(process: subprocess.Popen[bytes], question: bytes) -> bytes:
    assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018 - pipes
    try:
        process.stdin.write(question + b"\n")
        process.stdin.flush()
    except BrokenPipeError:
        return b""
    return process.stdout.readline()


def _serve(questions: IO[bytes], answers: IO[str]) -> None:
    """Answer questions, each a line of JSON, until there are no more."""
    from transformers.utils.chat_template_utils import render_jinja_template

    _limit(resource.RLIMIT_CORE, 0)
    if sys.platform == "linux":
        # Libraries reserve addresses for each processor, which take no memory.
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _limit(resource.RLIMIT_AS, pages * resource.getpagesize() + MOST_MEMORY)
    for line in questions:
        question = json.loads(line)
        _limit(resource.RLIMIT_CPU, math.ceil(time.process_time()) + MOST_SECONDS)
        try:
            (text,), _ = render_jinja_template(
                [question["messages"]],
                chat_template=question["template"],
                add_generation_prompt=True,
                **question["tokens"],
            )
            answer = {"text": text}
            if len(text) > LONGEST_TEXT:
                answer = {"error": f"it writes {len(text)} characters"}
        # Whatever a template stumbles over, it is told to whom it asked.
        except Exception as error:  # noqa: BLE001
            answer = {"error": f"{type(error).__name__}: {error}"[:LONGEST_TEXT]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _limit(what: int, most: int) -> None:
    _, hard = resource.getrlimit(what)
    resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


if __name__ == "__main__":
    out, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    _serve(sys.stdin.buffer, out)
