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
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import anyio
import psutil

SECONDS_BETWEEN_LOOKS = 0.05
SECONDS_FOR_LAST_LINES = 5.0  # after a command has ended, for what it left behind to let go of its output
LISTENING = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp(sys.argv[1], sys.argv[1:])"


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
                    time.sleep(SECONDS_BETWEEN_LOOKS)
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
    output, its_output = os.pipe()
    reader = asyncio.StreamReader()
    pipe, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(output, "rb", 0))
    process = subprocess.Popen(
        _listening(argv),
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=its_output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # from here on nothing waits before `try`, so that no cancellation can come between
    os.close(its_output)
    running.add(process.pid, grace)
    closer = asyncio.create_task(_close_output(process, pipe))
    try:
        async for line in _split(reader):
            yield line
        if status := await _end(process):
            raise CommandError(status)
    finally:
        with anyio.CancelScope(shield=True):  # a timeout cancels again and again; the retry must not start before the end
            await _stop(process, reader, grace)
            closer.cancel()
            pipe.close()
            running.remove(process.pid)


def _listening(argv: Sequence[str]) -> Sequence[str]:
    """The command, with ears for SIGINT: what a shell starts in the background ignores it, and so would all that it starts."""
    return [sys.executable, "-c", LISTENING, *argv] if signal.getsignal(signal.SIGINT) is signal.SIG_IGN else argv


async def _split(stream: asyncio.StreamReader) -> AsyncGenerator[str, None]:
    decoder, rest = codecs.getincrementaldecoder("utf-8")("replace"), ""
    while chunk := await stream.read(1 << 16):
        *whole, rest = re.split(r"[\r\n]", rest + decoder.decode(chunk))
        for line in whole:
            if line.strip():
                yield line
    if rest.strip():
        yield rest


async def _end(process: subprocess.Popen[bytes]) -> int:
    """The exit status, once there is one. asyncio's own would also wait for everybody who still holds the pipe."""
    while (status := process.poll()) is None:
        await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
    return status


async def _close_output(process: subprocess.Popen[bytes], pipe: asyncio.ReadTransport) -> None:
    """Kills what outlives its command in its group, and stops listening to what left the group with the pipe in its hands."""
    await _end(process)
    await asyncio.sleep(SECONDS_FOR_LAST_LINES)
    signal_group(process.pid, signal.SIGKILL)
    pipe.close()


async def _stop(process: subprocess.Popen[bytes], reader: asyncio.StreamReader, grace: float) -> None:
    if process.poll() is not None:
        signal_group(process.pid, signal.SIGKILL)
        return
    relatives = family(process.pid)
    signal_group(process.pid, signal.SIGINT)
    with anyio.move_on_after(grace):
        while await reader.read(1 << 16):  # else it would block on a full pipe while it says goodbye
            pass
        await _end(process)
    kill(process.pid, relatives)
    await _end(process)


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
