"""Commands as process groups: their lines as they come, and an end that leaves nothing running.

DVC and the stage below it get SIGINT together: DVC waits for the stage, the stage writes its checkpoint. What is still alive
after `grace` seconds is killed, with the workers that a launcher put into sessions of their own.
"""

import asyncio
import codecs
import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import anyio
import psutil

SECONDS_FOR_LAST_LINES = 5.0  # after a command has ended, for what it left behind to let go of its output


class CommandError(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(f"ended with status {status}")
        self.status = status


class Running:
    """The commands of this process, so that all can be interrupted at once from another thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._graces: dict[int, float] = {}  # process id -> seconds
        self.interrupted = False

    def add(self, pid: int, grace: float) -> None:
        with self._lock:
            self._graces[pid] = grace

    def remove(self, pid: int) -> None:
        with self._lock:
            self._graces.pop(pid, None)

    def interrupt_all(self) -> None:
        """Sends SIGINT to all, waits for each as long as it has grace, then kills. A second Ctrl-C kills at once."""
        with self._lock:
            self.interrupted = True
            graces = dict(self._graces)
        families = {pid: family(pid) for pid in graces}
        started = time.monotonic()
        try:
            for pid in graces:
                signal_group(pid, signal.SIGINT)
            for pid, grace in graces.items():
                while _is_alive(pid) and time.monotonic() - started < grace:
                    time.sleep(0.1)
        finally:
            for pid in graces:
                kill(pid, families[pid])


async def lines(argv: Sequence[str], *, cwd: Path, grace: float, running: Running) -> AsyncGenerator[str, None]:
    """Runs a command and yields what it writes to stdout and stderr, line by line; a bar's `\\r` ends a line too.

    Close it (`contextlib.aclosing`) or cancel it to stop the command; either returns after the command has ended.

    Raises:
        CommandError: its exit status is not 0.
    """
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "DVC_NO_ANALYTICS": "1"}
    process = await asyncio.create_subprocess_exec(
        *argv, cwd=cwd, env=environment, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    running.add(process.pid, grace)
    closer = asyncio.create_task(_close_output(process))
    try:
        assert process.stdout is not None
        async for line in _split(process.stdout):
            yield line
        if status := await process.wait():
            raise CommandError(status)
    finally:
        with anyio.CancelScope(shield=True):  # a timeout cancels again and again; the retry must not start before the end
            await _stop(process, grace)
            closer.cancel()
            running.remove(process.pid)


async def _split(stream: asyncio.StreamReader) -> AsyncGenerator[str, None]:
    decoder, rest = codecs.getincrementaldecoder("utf-8")("replace"), ""
    while chunk := await stream.read(1 << 16):
        *whole, rest = re.split(r"[\r\n]", rest + decoder.decode(chunk))
        for line in whole:
            if line.strip():
                yield line
    if rest.strip():
        yield rest


async def _close_output(process: asyncio.subprocess.Process) -> None:
    """Kills what outlives its command and would hold the pipe open for ever."""
    await process.wait()
    await asyncio.sleep(SECONDS_FOR_LAST_LINES)
    signal_group(process.pid, signal.SIGKILL)


async def _stop(process: asyncio.subprocess.Process, grace: float) -> None:
    if process.returncode is None:
        relatives = family(process.pid)
        signal_group(process.pid, signal.SIGINT)
        assert process.stdout is not None
        with anyio.move_on_after(grace):
            while await process.stdout.read(1 << 16):  # else it would block on a full pipe while it says goodbye
                pass
            await process.wait()
        kill(process.pid, relatives)
        await process.wait()
    else:
        signal_group(process.pid, signal.SIGKILL)


def family(pid: int) -> list[psutil.Process]:
    """The process and all below it. Taken before a signal: children of a dead process cannot be found any more."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)


def kill(pid: int, relatives: list[psutil.Process]) -> None:
    """Kills the group, and of `relatives` and their children those that are alive."""
    everyone = {*relatives, *(child for relative in relatives for child in family(relative.pid) if relative.is_running())}
    signal_group(pid, signal.SIGKILL)
    for process in everyone:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()  # psutil checks that the number still belongs to the same process


def _is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
