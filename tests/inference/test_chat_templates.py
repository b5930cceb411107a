"""Chat templates that loop, fill the memory or fail: one line, and the next one is rendered."""

from __future__ import annotations

import os
import resource
import signal
import threading
import time

import pytest

from labkit.errors import LabkitError
from labkit.inference import chat_templates
from labkit.inference.chat_templates import rendered

ENDLESS = "it took more than 2 s of the processor or 1 GB of memory"


def refusal(template):
    with pytest.raises(LabkitError) as caught:
        rendered(template, "Go!", {})
    text = str(caught.value)
    assert text.isprintable()
    assert text.startswith("the model's chat template cannot be used: ")
    assert text.endswith(
        "; choose another prompt format, or correct the template in the tokenizer's folder"
    )
    return text


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", ENDLESS),
        ("{{ 9 ** (9 ** 9) }}", ENDLESS),
        ("{% for i in range(10 ** 12) %}{% endfor %}", "OverflowError: Range too big"),
        ("{{ 'a' * 10 ** 10 }}", "MemoryError"),
        ("{{ 'a' * 2_000_000 }}", "it writes 2000000 characters"),
        ("{{ raise_exception('no system\\nrole') }}", "TemplateError: no system\\nrole"),
        ("{% for %}", "TemplateSyntaxError"),
        ("{{ " + "(" * 100_000 + "}}", ""),
    ],
)
def test_templates_that_go_wrong_are_refused_and_the_next_one_is_not(template, said):
    def children():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = children()
    assert said in refusal(template)
    assert rendered("{{ messages[0].content }}{{ eos }}", "Go!", {"eos": "</s>"}) == "Go!</s>"
    assert children() - before < 2 * chat_templates.MOST_SECONDS + 3


def test_one_process_renders_all_templates():
    rendered("a", "", {})
    process = chat_templates._renderer._process
    began = time.process_time()
    for number in range(200):
        assert rendered("{{ messages[0].content }}!", str(number), {}) == f"{number}!"
    assert time.process_time() - began < 2
    assert chat_templates._renderer._process is process


def test_an_interrupt_leaves_no_answer_for_the_next_one():
    rendered("a", "", {})

    def interrupt():
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        rendered(
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "", {}
        )
    assert rendered("new", "", {}) == "new"


def test_a_system_that_starts_no_process(monkeypatch):
    chat_templates._renderer.end()
    monkeypatch.setattr(chat_templates.sys, "executable", "/no/such/python")
    with pytest.raises(LabkitError, match="cannot start a process for the model's chat template"):
        rendered("a", "", {})
