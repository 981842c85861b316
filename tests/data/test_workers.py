import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from darkroom.data.workers import in_order, num_cores


def test_results_come_in_the_order_of_the_jobs_from_other_processes():
    jobs = [str(number) for number in range(40)]
    assert list(in_order(int, jobs, num_workers=2)) == list(in_order(int, jobs, num_workers=1)) == list(range(40))


def test_jobs_are_taken_as_results_are_used():
    taken = []

    def jobs():
        for number in range(100):
            taken.append(number)
            yield str(number)

    results = in_order(int, jobs(), num_workers=2)
    assert next(results) == 0
    assert len(taken) < 20
    results.close()


def test_an_error_in_a_worker_is_raised_here():
    with pytest.raises(ValueError, match="invalid literal"):
        list(in_order(int, ["1", "x", "3"], num_workers=2))


def test_a_worker_that_dies_is_an_error_that_names_its_job():
    with pytest.raises(ValueError, match=r"A worker process died at one of 7.*Move the file elsewhere"):
        list(in_order(os._exit, [7], num_workers=2))


def test_zero_workers_are_one_a_core():
    assert num_cores() >= 1
    pids = set(in_order(_pid, range(8 * num_cores()), num_workers=0))
    assert (os.getpid() in pids) == (num_cores() == 1)


def _pid(_: int) -> int:
    return os.getpid()


SLEEPERS = """
import time
from darkroom.data.workers import in_order
if __name__ == "__main__":
    print("ready", flush=True)
    list(in_order(time.sleep, [1000, 1000], num_workers=2))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX signals")
def test_workers_end_with_a_parent_that_is_killed(tmp_path, project):
    script = tmp_path / "sleepers.py"
    script.write_text(SLEEPERS)
    with subprocess.Popen([sys.executable, script], env={**os.environ, "PYTHONPATH": str(project)}, stdout=subprocess.PIPE) as parent:
        children = _wait_for_children(parent.pid, number=3)  # two workers and multiprocessing's resource tracker
        time.sleep(1)  # let them reach their first job
        parent.kill()
    _, alive = psutil.wait_procs(children, timeout=10)
    for process in alive:
        process.kill()
    assert not alive


def _wait_for_children(pid: int, number: int) -> list[psutil.Process]:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if len(children := psutil.Process(pid).children(recursive=True)) >= number:
            return children
        time.sleep(0.1)
    raise AssertionError("the workers did not start")
