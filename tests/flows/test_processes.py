"""Real processes: what they say, how they stop, and that nothing of them stays."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path

import anyio
import psutil
import pytest

from flows import processes
from flows.processes import CommandError, Running, lines

POLITE = """
import signal, sys, time, pathlib
def stop(*_):
    print("x" * 2_000_000)  # more than a pipe holds
    pathlib.Path("checkpoint").write_text("saved")
    sys.exit(1)
signal.signal(signal.SIGINT, stop)
print("ready", flush=True)
time.sleep(60)
"""
DEAF = """
import signal, time, subprocess, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"],
                         start_new_session=True)  # as torchrun starts its workers
print(child.pid, flush=True)
time.sleep(60)
"""


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


async def collect(code: str, folder: Path, *, grace: float = 10.0, running: Running | None = None) -> list[str]:
    async with aclosing(lines(python(code), cwd=folder, grace=grace, running=running or Running())) as output:
        return [line async for line in output]


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_both_streams_come_line_by_line_and_a_bar_too(tmp_path: Path) -> None:
    code = "import sys; print('a'); print('b', file=sys.stderr); print('1%\\r2%\\r3%'); print(); sys.stdout.write('end')"
    assert asyncio.run(collect(code, tmp_path)) == ["a", "b", "1%", "2%", "3%", "end"]


def test_a_very_long_line_and_broken_bytes_do_not_end_the_reading(tmp_path: Path) -> None:
    code = "import sys; print('x' * 300_000); sys.stdout.flush(); sys.stdout.buffer.write(b'\\xff\\n')"
    assert [len(line) for line in asyncio.run(collect(code, tmp_path))] == [300_000, 1]


def test_a_command_hears_its_interruption_even_if_a_background_shell_made_us_deaf(tmp_path: Path) -> None:
    code = "try: print('ready', flush=True); time.sleep(30)\nexcept KeyboardInterrupt: open('heard', 'w').close()"

    async def interrupt() -> None:
        async with aclosing(lines(python("import time\n" + code), cwd=tmp_path, grace=20, running=Running())) as output:
            async for _ in output:
                return

    kept = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        asyncio.run(interrupt())
    finally:
        signal.signal(signal.SIGINT, kept)
    assert (tmp_path / "heard").exists()


def test_lines_come_while_the_command_runs(tmp_path: Path) -> None:
    async def first() -> float:
        started = time.monotonic()
        async with aclosing(lines(python("print('now'); import time; time.sleep(30)"), cwd=tmp_path, grace=1, running=Running())) as output:
            async for _ in output:
                return time.monotonic() - started
        raise AssertionError("no line")

    assert asyncio.run(first()) < 10


def test_it_runs_in_the_folder_it_is_given(tmp_path: Path) -> None:
    assert asyncio.run(collect("import os; print(os.getcwd())", tmp_path)) == [str(tmp_path)]


def test_another_status_than_0_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="ended with exit status 3"):
        asyncio.run(collect("print('a'); raise SystemExit(3)", tmp_path))


def stop_by_leaving(folder: Path) -> Awaitable[None]:
    async def leave() -> None:
        async with aclosing(lines(python(POLITE), cwd=folder, grace=20, running=Running())) as output:
            async for _ in output:
                break

    return leave()


def stop_by_timeout(folder: Path) -> Awaitable[None]:
    async def wait() -> None:
        with anyio.move_on_after(3) as scope:
            await collect(POLITE, folder, grace=20)
        assert scope.cancelled_caught

    return wait()


@pytest.mark.parametrize("stop", [stop_by_leaving, stop_by_timeout])
def test_a_command_that_is_stopped_saves_its_checkpoint_first(tmp_path: Path, stop: Callable[[Path], Awaitable[None]]) -> None:
    async def run() -> None:
        await stop(tmp_path)
        assert (tmp_path / "checkpoint").read_text() == "saved"  # already when stop returns: a retry may start now

    asyncio.run(run())


def test_what_ignores_the_signal_is_killed_after_the_grace_with_workers_in_other_sessions(tmp_path: Path) -> None:
    async def run() -> tuple[int, float]:
        async with aclosing(lines(python(DEAF), cwd=tmp_path, grace=1, running=Running())) as output:
            async for line in output:
                worker = int(line)
                started = time.monotonic()
                break
        return worker, time.monotonic() - started

    worker, seconds = asyncio.run(run())
    assert 0.9 < seconds < 8
    until(lambda: not psutil.pid_exists(worker) or psutil.Process(worker).status() == psutil.STATUS_ZOMBIE)


def test_what_outlives_its_command_does_not_hold_the_flow_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "SECONDS_FOR_LAST_LINES", 0.5)
    code = "import subprocess; p = subprocess.Popen(['sleep', '60']); print(p.pid)"
    started = time.monotonic()
    (pid,) = asyncio.run(collect(code, tmp_path))
    assert time.monotonic() - started < 10
    until(lambda: not psutil.pid_exists(int(pid)) or psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE)


def test_not_even_if_it_took_the_output_into_another_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "SECONDS_FOR_LAST_LINES", 0.5)
    code = "import subprocess; p = subprocess.Popen(['sleep', '20'], start_new_session=True); print(p.pid)"
    started = time.monotonic()
    (pid,) = asyncio.run(collect(code, tmp_path))
    assert time.monotonic() - started < 10
    psutil.Process(int(pid)).kill()


def in_thread(code: str, folder: Path, grace: float, running: Running) -> tuple[threading.Thread, list[BaseException]]:
    """Runs a command as a task of the flow does: in a thread with an event loop of its own."""
    errors: list[BaseException] = []

    def work() -> None:
        try:
            asyncio.run(collect(code, folder, grace=grace, running=running))
        except CommandError as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    until(lambda: bool(running._graces))
    return thread, errors


def test_all_commands_are_interrupted_at_once_and_save_their_checkpoints(tmp_path: Path) -> None:
    running = Running()
    folders = [tmp_path / name for name in ("a", "b")]
    threads = []
    for folder in folders:
        folder.mkdir()
        threads.append(in_thread(POLITE.replace('print("ready", flush=True)', 'pathlib.Path("ready").touch()'), folder, 20, running))
    until(lambda: all((folder / "ready").exists() for folder in folders))
    running.interrupt_all()
    for (thread, errors), folder in zip(threads, folders, strict=True):
        thread.join(timeout=10)
        assert (folder / "checkpoint").exists()
        assert errors
    assert running.interrupted
    assert not running._graces


def test_interrupting_kills_what_does_not_obey(tmp_path: Path) -> None:
    running = Running()
    code = DEAF.replace("print(child.pid, flush=True)", "open('worker', 'w').write(str(child.pid))")
    thread, errors = in_thread(code, tmp_path, 1, running)
    until(lambda: (tmp_path / "worker").exists() and (tmp_path / "worker").read_text() != "")
    started = time.monotonic()
    running.interrupt_all()
    thread.join(timeout=10)
    assert time.monotonic() - started < 8
    assert errors
    worker = int((tmp_path / "worker").read_text())
    until(lambda: not psutil.pid_exists(worker) or psutil.Process(worker).status() == psutil.STATUS_ZOMBIE)


def test_a_command_has_a_process_group_of_its_own(tmp_path: Path) -> None:
    (group,) = asyncio.run(collect("import os; print(os.getpgid(0))", tmp_path))
    assert int(group) != os.getpgid(0)


def test_signalling_a_process_that_is_gone_is_no_error() -> None:
    gone = subprocess.Popen(["true"], start_new_session=True)
    gone.wait()
    processes.kill(gone.pid, [])
    assert processes.family(gone.pid) == []
