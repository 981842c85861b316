"""Commands as process groups: yields their output lines, and stops them without leaving a process behind.

DVC and its stage get SIGINT together: the stage writes its checkpoint, DVC waits for it. Processes that are still alive after
`grace` seconds are killed, including workers that a launcher started in other sessions.
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
SECONDS_FOR_LAST_LINES = 5.0  # after a command has ended: time for its leftover processes to close its output
LISTENING = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp(sys.argv[1], sys.argv[1:])"


class CommandError(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(f"ended with exit status {status}")
        self.status = status


class Running:
    """The commands of this process, so that another thread can interrupt all of them."""

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
        """Send SIGINT to all, wait for each up to its `grace`, then kill them. A second Ctrl-C kills at once."""
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
    """Run a command and yield the lines of its stdout and stderr. The `\\r` of a progress bar ends a line too.

    To stop the command, close this generator (`contextlib.aclosing`) or cancel it; both return after the command has ended.

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
    )  # no `await` between here and `try`, so that no cancellation can come between
    os.close(its_output)
    running.add(process.pid, grace)
    closer = asyncio.create_task(_close_output(process, pipe))
    try:
        async for line in _split(reader):
            yield line
        if status := await _end(process):
            raise CommandError(status)
    finally:
        with anyio.CancelScope(shield=True):  # a timeout cancels repeatedly; the retry must not start before the command has ended
            await _stop(process, reader, grace)
            closer.cancel()
            pipe.close()
            running.remove(process.pid)


def _listening(argv: Sequence[str]) -> Sequence[str]:
    """The command with SIGINT switched on: a process that a shell starts in the background ignores it, and so do its children."""
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
    """Wait for the exit status. asyncio's own wait also waits for all processes that still hold the pipe."""
    while (status := process.poll()) is None:
        await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
    return status


async def _close_output(process: subprocess.Popen[bytes], pipe: asyncio.ReadTransport) -> None:
    """After the command, kill the rest of its group, and close the pipe that processes outside the group may still hold."""
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
        while await reader.read(1 << 16):  # else the command would block on a full pipe
            pass
        await _end(process)
    kill(process.pid, relatives)
    await _end(process)


def family(pid: int) -> list[psutil.Process]:
    """The process and its descendants. Call it before sending a signal: the children of a dead process cannot be found."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)


def kill(pid: int, relatives: list[psutil.Process]) -> None:
    """Kill the group, and all `relatives` and their children that are still alive."""
    everyone = {*relatives, *(child for relative in relatives for child in family(relative.pid) if relative.is_running())}
    signal_group(pid, signal.SIGKILL)
    for process in everyone:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()  # psutil checks that the id still belongs to the same process


def _is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
