"""Parallel worker processes; results come in the order of the jobs, for any number of processes."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")
JOBS_AHEAD = 4  # per process: enough to keep it busy during a long job, few enough to hold their results in memory


def in_order(function: Callable[[Job], Result], jobs: Iterable[Job], *, num_workers: int) -> Generator[Result]:
    """Yield function(job) for every job.

    Args:
        function: importable by name, so that other processes find it.
        num_workers: processes; 0 = one per core; 1 = in this process.

    Raises:
        ValueError: a process died, e.g. by a crash of a decoder or for lack of memory.
    """
    num_workers = num_workers or num_cores()
    if num_workers == 1:
        yield from map(function, jobs)
        return
    context = multiprocessing.get_context("spawn")  # a fork would inherit the threads and locks of MLflow
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_follow_parent)
    waiting: deque[tuple[Job, Future[Result]]] = deque()
    try:
        for job in jobs:
            with _without_interrupts():
                future = pool.submit(function, job)  # starts a process, if none is idle
            waiting.append((job, future))
            if len(waiting) == num_workers * JOBS_AHEAD:
                yield waiting[0][1].result()
                waiting.popleft()
        while waiting:
            yield waiting[0][1].result()
            waiting.popleft()
    except BrokenProcessPool as error:
        running = [str(job) for job, future in waiting if not future.done() or future.exception()][: num_workers + 1]
        raise ValueError(
            f"A worker process died at one of {', '.join(running)}: a decoder crashed, or there was not enough memory. "
            "Move the file elsewhere, or lower ingest.max_megapixels or ingest.num_workers."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def num_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Ctrl-C waits until the end. Processes that are started meanwhile never see it, not even while they import: it is their parent's."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _follow_parent() -> None:
    """Exit when the parent process is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in a child process"

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
