"""Starts a training stage on one or many devices: `python -m darkroom.training.launch --num_processes 8 stages.train_unet`.

One process replaces this one, so that a Ctrl-C or a scheduler's SIGTERM reaches the stage itself (Accelerate's launcher
stays between and dies first, leaving the stage an orphan). More processes, or several machines described in the file
that ACCELERATE_CONFIG_FILE names, are started by `accelerate launch`, on GPUs or on CPUs.
"""

import argparse
import os
import sys


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


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m darkroom.training.launch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num_processes", type=int, required=True, help="one a device, over all machines")
    parser.add_argument("module", help="e.g. stages.train_unet")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of the stage")
    given = parser.parse_args()
    config_file = os.environ.get("ACCELERATE_CONFIG_FILE")
    line = command(given.module, given.arguments, num_processes=given.num_processes, config_file=config_file)
    os.execv(line[0], line)


if __name__ == "__main__":
    main()
