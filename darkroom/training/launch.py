"""Start a stage on as many devices as params.yaml says: `python -m darkroom.training.launch stages.train_unet`.

A stage with one process replaces this process, so that Ctrl-C or a scheduler's SIGTERM reaches the stage itself. (Accelerate's
launcher would stay in between and die first, and leave the stage behind as an orphan.) `accelerate launch` starts several
processes, on GPUs or CPUs, or on the machines that the file named by ACCELERATE_CONFIG_FILE describes.
"""

import argparse
import os
import sys
from pathlib import Path

from darkroom.params_file import load_params


def command(module: str, arguments: list[str], *, num_processes: int, config_file: str | None) -> list[str]:
    """The command line that runs `python -m module` on `num_processes` devices."""
    if num_processes == 1 and not config_file:
        return [sys.executable, "-m", module, *arguments]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--num_processes", str(num_processes)]
    if config_file:
        launcher += ["--config_file", config_file]
    else:
        threads = max(1, (os.cpu_count() or 1) // num_processes)
        launcher += ["--multi_gpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        launcher += ["--num_cpu_threads_per_process", str(threads)]
    return [*launcher, "--module", module, *arguments]


def place(stage: str, num_processes: int) -> tuple[int, int]:
    """The number of this process of a stage, from 0, and how many there are.

    Raises:
        ValueError: there are not `num_processes`.
    """
    rank, world = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    if world != num_processes:
        raise ValueError(
            f"{stage}.num_processes is {num_processes}, but {world} run. Start the stage as dvc.yaml does, "
            f"with `python -m darkroom.training.launch stages.{stage}`."
        )
    return rank, world


def processes_of(stage: str, arguments: list[str]) -> int:
    """`num_processes` of a stage in the file that its `--params` names.

    Raises:
        ValueError: the file is invalid, or the stage has no such parameter.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    section = load_params(parser.parse_known_args(arguments)[0].params).get(stage)
    number: int | None = getattr(section, "num_processes", None)
    if number is None:
        raise ValueError(f"{stage} has no parameter num_processes: start it without the launcher.")
    return number


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m darkroom.training.launch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("module", help="module of the stage, e.g. stages.train_unet")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="arguments of the stage")
    given = parser.parse_args()
    config_file = os.environ.get("ACCELERATE_CONFIG_FILE")
    stage = given.module.removeprefix("stages.")
    try:
        num_processes = processes_of(stage, given.arguments)
    except ValueError as error:
        sys.exit(f"{stage}: {error}")
    line = command(given.module, given.arguments, num_processes=num_processes, config_file=config_file)
    os.execv(line[0], line)


if __name__ == "__main__":
    main()
