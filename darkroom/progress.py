"""Progress of a loop: a bar on a terminal, `::progress {json}` lines in a pipe."""

import json
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 5.0


def progress(items: Iterable[Item], *, desc: str, total: int | None = None, initial: int = 0, unit: str = "it") -> Iterator[Item]:
    """Yield `items` and show the progress and the time left.

    A terminal gets a bar. A pipe gets one line every few seconds, which the Prefect flow turns into a progress artifact:
    `::progress {"desc": "train_unet", "step": 120, "total": 600, "seconds_left": 84}`.
    """
    if total is None and isinstance(items, Sized):
        total = initial + len(items)
    if sys.stderr.isatty():
        yield from tqdm(items, desc=desc, total=total, initial=initial, unit=unit, dynamic_ncols=True)
        return
    started = last = time.monotonic()
    step = printed = initial
    for step, item in enumerate(items, start=initial + 1):
        yield item
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            _print_line(desc, step, total, seconds_per_step=(now - started) / (step - initial))
            last, printed = now, step
    if last > started and step > printed:  # short loops print nothing
        _print_line(desc, step, total, seconds_per_step=0.0)


def _print_line(desc: str, step: int, total: int | None, seconds_per_step: float) -> None:
    fields: dict[str, str | int] = {"desc": desc, "step": step}
    if total is not None:
        fields |= {"total": total, "seconds_left": round((total - step) * seconds_per_step)}
    print(f"::progress {json.dumps(fields)}", flush=True)
