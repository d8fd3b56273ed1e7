"""Entry point: runs a command, with its exit code, one-line errors, and interrupts."""

import argparse
import contextlib
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from latentlab.cli.parser import parsed
from latentlab.cli.runs import run_command
from latentlab.errors import LatentLabError
from latentlab.processes import refuse_several
from latentlab.registry import plugin_line

INTERRUPTED = 130
INTERRUPTED_TWICE = "interrupted twice and stopped immediately; repeat the command (a run: with --resume) to continue."


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; an error is printed in one line (a config can have several)."""
    arguments = parsed(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    with _interruptible():
        return _code(arguments)


def _code(arguments: argparse.Namespace) -> int:
    try:
        refuse_several(unless=arguments.command is run_command)
        code: int = arguments.command(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        exec("")  # clears CPython's flag of an interrupt inside text run by `exec`, with which Python would end by the signal
        with_resume = " with --resume" if hasattr(arguments, "resume") else ""
        print(f"latentlab: interrupted; repeat the command{with_resume} to continue.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if arguments.debug:
            traceback.print_exc()
        print(f"latentlab: error: {_message(error)}", file=sys.stderr)
        return int(getattr(error, "exit_code", 1))


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Convert SIGINT and SIGTERM to KeyboardInterrupt within a `with` block; a second signal ends the process at once.

    Files are written atomically, so that a run can be resumed after either.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def stop(number: int, _: Any) -> None:
        received.append(number)
        if len(received) > 1:
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\nlatentlab: {INTERRUPTED_TWICE}\n".encode())
            os._exit(INTERRUPTED)
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _message(error: Exception) -> str:
    expected, line = isinstance(error, LatentLabError), plugin_line(error)
    text = str(error) if expected else f"{type(error).__name__}: {error}"
    if line and line not in text:
        text += f" ({line})"
    elif not expected:
        text += " (unexpected error; --debug shows the traceback)"
    return "\n".join([text, *getattr(error, "__notes__", [])])
