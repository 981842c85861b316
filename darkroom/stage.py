"""What every stage does around its work: parameters, inputs, temporary outputs, index.json, the tracked run, errors."""

import argparse
import errno
import logging
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from darkroom.config import Section
from darkroom.params_file import load_params
from darkroom.provenance import check_lineage, hash_json, read_index, replacing, write_index, write_json
from darkroom.tracking import stage_run
from darkroom.tracking.tracker import Tracker

P = TypeVar("P", bound=Section)
logger = logging.getLogger(__name__)

RAW = "raw"  # the user's own folder: the one input that no stage made


@dataclass
class Stage(Generic[P]):
    """One run of a stage, as its `run(stage)` sees it."""

    name: str
    params: P
    inputs: dict[str, Path]  # name -> folder, its index checked
    outs: dict[str, Path]  # name -> where to write; takes its real name when the stage has ended well
    indexes: dict[str, dict[str, Any]]  # name of an input -> its index.json
    key: str  # hash of parameters and inputs
    scratch: Path  # survives a kill, is not an output: checkpoints
    tracker: Tracker
    is_main: bool  # the one process that writes
    content: dict[str, dict[str, Any]] = field(default_factory=dict)  # name of an output -> the stage's own part of its index.json


def main(
    name: str,
    run: Callable[[Stage[P]], None],
    *,
    reads: tuple[str, ...],
    writes: tuple[str, ...],  # folders, or files when they have a suffix, below the data folder
) -> None:
    """The command `python -m stages.<name>`: exit status 0 only if every output is in place."""
    doc = sys.modules["__main__"].__doc__ or ""
    parser = argparse.ArgumentParser(prog=f"python -m stages.{name}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="parameters of all stages (default: %(default)s)")
    parser.add_argument("--data", type=Path, default=Path("data"), help="where inputs and outputs lie (default: %(default)s)")
    arguments = parser.parse_args()
    logging.basicConfig(format=f"%(asctime)s {name} %(levelname)s: %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("darkroom").setLevel(logging.INFO)
    logging.getLogger("__main__").setLevel(logging.INFO)
    try:
        execute(name, run, params_file=arguments.params, data=arguments.data, reads=reads, writes=writes)
    except ValueError as error:
        sys.exit(f"{name}: {error}")
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        free = shutil.disk_usage(arguments.data).free / 2**20
        sys.exit(
            f"{name}: the disk of {arguments.data.resolve()} is full ({free:.0f} MiB free). Nothing half-made was left; "
            "make room (`dvc gc --workspace` drops old outputs) and run the same command again."
        )


def execute(
    name: str, run: Callable[[Stage[P]], None], *, params_file: Path, data: Path, reads: tuple[str, ...], writes: tuple[str, ...]
) -> None:
    """Runs one stage in this process.

    Raises:
        ValueError: a bad parameter, an input that is missing, damaged or of another run.
        OSError: the outputs could not be written.
    """
    params = cast(P, load_params(params_file)[name])
    indexes = {item: read_index(data / item) for item in reads if item != RAW}
    check_lineage(indexes)
    fingerprints = {item: index["fingerprint"] for item, index in indexes.items()}
    key = hash_json({"params": params.model_dump(), "inputs": fingerprints})[:16]
    scratch = data.parent / ".scratch" / name / key
    is_main = int(os.environ.get("RANK", "0")) == 0
    with ExitStack() as stack:
        tracker = stack.enter_context(
            stage_run(
                name, params=params.model_dump(), key=key, inputs=fingerprints, params_file=params_file, scratch=scratch, enabled=is_main
            )
        )
        outs = {item: stack.enter_context(replacing(data / item)) if is_main else data / item for item in writes}
        if is_main:
            for item, path in outs.items():
                if not Path(item).suffix:
                    path.mkdir(parents=True)
            record = stack.enter_context(replacing(data / "runs" / f"{name}.json"))
        stage = Stage(
            name=name,
            params=params,
            inputs={item: data / item for item in reads},
            outs=outs,
            indexes=indexes,
            key=key,
            scratch=scratch,
            tracker=tracker,
            is_main=is_main,
        )
        run(stage)
        if is_main:
            for item, path in outs.items():
                if path.is_dir():
                    write_index(path, stage=name, params=params.model_dump(), inputs=indexes, content=stage.content.get(item, {}))
            write_json(record, tracker.record)
    if is_main:
        shutil.rmtree(scratch, ignore_errors=True)  # the outputs are in place: a forced repetition starts anew
    logger.info("%s is done: %s", name, ", ".join(str(data / item) for item in writes))
