"""How a command of ours ends if it is stopped or cannot start: in one line, and not in a traceback.

Any Python reads this file before all others, so that it needs nothing but the standard library and the syntax of Python 3.8.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import NoReturn

INTERRUPTED = 130  # exit status: 128 + SIGINT, as shells have it
OURS = ("darkroom", "stages", "flows")
REMEDY = "Run `make install`, then `source .venv/bin/activate`."


def end_in_one_line() -> None:
    """For a process that is one of our commands, from its first import on; its work stands in `stoppable`.

    Exits if this Python is too old.
    """
    if sys.version_info < (3, 11):  # noqa: UP036  that is the question here
        found = ".".join(map(str, sys.version_info[:2]))
        sys.exit(f"Darkroom requires Python 3.11 or newer, but {sys.executable} is {found}. {REMEDY}")
    sys.excepthook = _one_line
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # what a shell starts in the background ignores Ctrl-C
        signal.signal(signal.SIGINT, _stop_at_once)


@contextmanager
def stoppable(message: str) -> Iterator[None]:
    """Work that Ctrl-C ends in an orderly way: as a KeyboardInterrupt, then with one line and exit status 130.

    Args:
        message: says what was kept, unless the KeyboardInterrupt itself says it.
    """
    seen: list[int] = []

    def note(number: int, _: object) -> NoReturn:
        seen.append(number)
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    listens = before in (signal.default_int_handler, _stop_at_once) and threading.current_thread() is threading.main_thread()
    if listens:
        signal.signal(signal.SIGINT, note)
    try:
        yield
    except BaseException as error:
        if not seen and not isinstance(error, KeyboardInterrupt):
            raise
        own = str(error) if isinstance(error, KeyboardInterrupt) else ""  # libraries in C turn it into errors of their own
        print("\n" + (own or message), file=sys.stderr, flush=True)
        sys.exit(INTERRUPTED)
    finally:
        if listens:
            signal.signal(signal.SIGINT, before)


def _stop_at_once(*_: object) -> NoReturn:
    """While modules are imported there is nothing to clean up, and a KeyboardInterrupt would become another error in some of them."""
    os.write(2, b"\nInterrupted.\n")
    os._exit(INTERRUPTED)


def _one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] not in OURS:
        print(f"{sys.executable} has no package `{error.name}`. {REMEDY}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)
