"""`python -m flows.pipeline`: the stages of dvc.yaml as Prefect tasks. DVC decides what must run; Prefect runs it."""

import argparse
import signal
import sys
import time
from collections import deque
from contextlib import aclosing
from pathlib import Path
from typing import Any, NoReturn

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture, as_completed
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import BaseModel, ConfigDict, Field

from darkroom.ending import stoppable
from flows import graph, words
from flows.artifacts import ProgressBar, publish
from flows.processes import CommandError, Running, lines
from flows.servers import prefect_api

MAX_JOBS = 8
Run = PrefectFuture[Any]
running = Running()


class RunParams(BaseModel):
    """What to run. Prefect's page shows it as a form."""

    model_config = ConfigDict(extra="forbid")

    targets: list[str] = Field(default=[], description="Stages to bring up to date, with the stages that they need; none = all")
    force: bool = Field(default=False, description="Run the stages even if nothing changed")
    pull: bool = Field(default=False, description="Fetch missing inputs from the DVC remote, only those that are needed")
    jobs: int = Field(default=1, ge=1, le=MAX_JOBS, description="Stages that run at the same time; the device must have memory for them")


@task(cache_policy=NO_CACHE, task_run_name="{name}")
async def reproduce(name: str, root: Path, options: list[str], grace: float) -> State:
    """`dvc repro --single-item NAME`. Its state is called Cached or Restored if DVC ran nothing.

    If the stage fails, the state has the stage's last lines. It is not an exception, whose traceback would show only Prefect.
    """
    logger, bar = get_run_logger(), ProgressBar(name)
    last: deque[str] = deque(maxlen=50)
    verdict, started = "Completed", time.monotonic()
    argv = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", *options, name]
    try:
        async with aclosing(lines(argv, cwd=root, grace=grace, running=running)) as output:
            async for line in output:
                if fields := words.progress(line):
                    await bar.show(fields)
                    continue
                logger.info("%s", line)
                last.append(line)
                verdict = words.verdict(name, line) or verdict
    except CommandError as error:
        return Failed(message=words.error(last) or str(error))
    return Completed(name=verdict, message=f"{time.monotonic() - started:.1f} s")


def _may_retry(*_: object) -> bool:
    return not running.interrupted


@flow(name="pipeline", task_runner=ThreadPoolTaskRunner(max_workers=MAX_JOBS))  # type: ignore[arg-type]
def pipeline(params: RunParams = RunParams()) -> State:  # noqa: B008  # immutable in use; Prefect takes the form's defaults from it
    """Bring the stages of dvc.yaml up to date. Each is a task that waits for the tasks it needs."""
    root = Path.cwd()
    nodes = graph.load(root, params.targets)
    running.interrupted = False
    runs: dict[str, Run] = {}
    try:
        for node in nodes:
            _wait_for_room(list(runs.values()), params.jobs)
            runs[node.name] = _submit(node, root, params, [runs[need] for need in node.needs])
        for run in runs.values():
            run.wait()
    except BaseException:  # Ctrl-C, or Prefect's signal after the run is cancelled on its page
        running.interrupt_all()
        raise
    table = [_row(node, runs[node.name].state) for node in nodes]
    publish(root, table)
    print(_as_text(table))
    failed = [f"{name}: {run.state.message}" for name, run in runs.items() if run.state.is_failed() or run.state.is_crashed()]
    return Failed(message="\n".join(failed)) if failed else Completed(message=f"{len(nodes)} stages are up to date")


def _wait_for_room(runs: list[Run], jobs: int) -> None:
    """Wait until fewer than `jobs` tasks are running."""
    under_way = [run for run in runs if not run.state.is_final() and run.state.name != "NotReady"]
    if len(under_way) >= jobs:
        finished = as_completed(under_way)
        for _ in range(len(under_way) - jobs + 1):
            next(finished)


def _submit(node: graph.Node, root: Path, params: RunParams, needs: list[Run]) -> Run:
    options = ["--force"] * (params.force and not node.is_source) + ["--pull", "--allow-missing"] * params.pull
    prepared: Any = reproduce.with_options(  # Prefect's types do not cover submit(wait_for=...) of an async task
        name=node.name,
        description=node.description or None,
        tags=node.policy.tags,
        retries=node.policy.retries,
        retry_delay_seconds=node.policy.retry_delay,
        retry_condition_fn=_may_retry,
        timeout_seconds=node.policy.timeout,
    )
    run: Run = prepared.submit(node.name, root, options, node.policy.grace, wait_for=needs)
    return run


def _row(node: graph.Node, state: State) -> dict[str, str]:
    name = "Not run" if state.name == "NotReady" else state.name or ""
    return {"stage": node.name, "state": name, "time": (state.message or "") if state.is_completed() else "", "what": node.description}


def _as_text(table: list[dict[str, str]]) -> str:
    width = max(len(row["stage"]) for row in table) if table else 0
    return "\n".join(f"{row['stage']:<{width}}  {row['state']:<10} {row['time']:>9}" for row in table)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flows.pipeline", description=__doc__)
    parser.add_argument("targets", nargs="*", help="stages to bring up to date, with the stages that they need (default: all)")
    parser.add_argument("--force", action="store_true", help="run them even if nothing changed")
    parser.add_argument("--pull", action="store_true", help="fetch missing inputs from the DVC remote, only those that are needed")
    parser.add_argument(
        "--jobs", type=int, default=1, choices=range(1, MAX_JOBS + 1), metavar="N", help="stages that run at the same time (default: 1)"
    )
    params = RunParams(**vars(parser.parse_args()))
    signal.signal(signal.SIGTERM, _interrupt)  # like Ctrl-C: no process may stay
    try:
        with stoppable("Interrupted. The same command resumes from the last checkpoints."):
            graph.load(Path.cwd(), params.targets)  # finds mistakes before Prefect starts
            with prefect_api():
                state = pipeline(params, return_state=True)
    except ValueError as error:
        sys.exit(f"flows.pipeline: {error}")
    if not state.is_completed():
        sys.exit(f"\n{state.message}")


if __name__ == "__main__":
    main()
