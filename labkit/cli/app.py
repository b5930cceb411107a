"""The command line: `labkit --help`.

Success is 0. Wrong input is 2 and one line on standard error, never a traceback.
"""

from __future__ import annotations

import functools
import io
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any

import typer

from labkit import __version__
from labkit.cli.adapters import combine, extract, resize
from labkit.cli.exporting import export
from labkit.cli.looking import demo, inspect, picture
from labkit.cli.making import bake, merge, verify
from labkit.cli.recipes import recipes
from labkit.cli.uploading import push
from labkit.errors import LabkitError, shown, speak_shell
from labkit.machine import require_address_space, shortage

app = typer.Typer(
    context_settings={"help_option_names": ["-h", "--help"]},
    # Plain help: drawing it with rich takes longer to import than all of labkit's command line.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

# Typer brings its own copy of click or uses the installed one, by its version; the class that all
# its errors of usage share has one name in both.
USAGE_ERROR: Any = next(
    kind for kind in typer.BadParameter.mro() if kind.__name__ == "ClickException"
)

NOTHING_LEFT = "nothing was left behind"
LEAST_MEMORY = 300 << 20
"""Bytes of address space that Python's libraries take before anything is read."""

STOPPED = 130
"""The status of a command that Ctrl-C ended, as shells have it."""


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"labkit {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def labkit(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say which.")
    ] = False,
) -> None:
    """A lab bench for layer-weighted LoRA merges."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
    else:
        require_address_space(LEAST_MEMORY)


class StoppedError(Exception):
    """A command was told to end; the text says what it left."""


def _stoppable(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose Ctrl-C reaches `main` with what was noted of it: typer keeps no notes."""

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
        except KeyboardInterrupt as error:
            raise StoppedError("; ".join(getattr(error, "__notes__", ()))) from error

    return run


EXAMPLES: dict[Callable[..., None], str] = {
    demo: "labkit demo --out here",
    inspect: "labkit inspect here/base here/adapters/kjv --weights 0x15,1x15",
    merge: "labkit merge here/base here/adapters/kjv --weights 'ramp(14,16)' --out merged",
    push: "labkit push merged owner/name",
    bake: "labkit bake here/adapters/kjv --weights 0x15,1x15 --out baked",
    extract: "labkit extract owner/model owner/base --out lora",
    resize: "labkit resize here/adapters/kjv --rank 4 --out small",
    combine: "labkit combine one two --weights 1x30 --weights 0x15,1x15 --out both",
    export: "labkit export merged --format gguf-q4_k_m --out quantised",
    picture: "labkit picture --weights 0x19,0.5,1x20 --out gradient.svg",
    verify: "labkit verify merged",
}
for command, example in EXAMPLES.items():
    # \b keeps the line in one piece.
    app.command(epilog=f"\b\nExample: {example}")(_stoppable(command))
app.add_typer(recipes, name="recipe")


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line; turn every expected error into one line and a status."""
    speak_shell()
    # A merge that is told to end takes away what it had built, as it does for Ctrl-C.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, _stop)
    # labkit's own threads share the work; the library's would each set memory apart, and where they
    # may not be started it ends the process as Ctrl-C does.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a letter gets its number
            stream.reconfigure(errors="backslashreplace")
    try:
        status = app(standalone_mode=False)
    except StoppedError as error:
        _fail(f"stopped; {str(error) or NOTHING_LEFT}", STOPPED)
    except LabkitError as error:
        _fail(str(error))
    except USAGE_ERROR as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "labkit"
        _fail(f"{shown(error.format_message(), 400)} (see {command} --help)")
    except (KeyboardInterrupt, typer.Abort):
        status = STOPPED
    except Exception as error:
        said = shortage(error)
        if said is None:
            raise
        _fail(said)
    if status == STOPPED:  # typer's own answer to Ctrl-C, in some of its versions
        _fail(f"stopped; {NOTHING_LEFT}", STOPPED)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str, status: int = 2) -> None:
    with suppress(OSError):  # the terminal may be gone
        print(f"labkit: error: {message}", file=sys.stderr, flush=True)
    sys.exit(status)
