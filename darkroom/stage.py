"""Tasks that all stages share: check parameters and inputs, write complete outputs, record the run, report errors."""

import argparse
import errno
import logging
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from darkroom.config import Section
from darkroom.ending import stoppable
from darkroom.params_file import load_params
from darkroom.provenance import check_lineage, hash_json, read_index, replacing, write_index, write_json
from darkroom.source_code import code_identity
from darkroom.tracking import stage_run
from darkroom.tracking.tracker import Tracker

P = TypeVar("P", bound=Section)
logger = logging.getLogger(__name__)

RAW = "raw"  # the user's folder: the only input that no stage writes


@dataclass
class Stage(Generic[P]):
    """One run of a stage, as its function `run(stage)` sees it."""

    name: str
    params: P
    inputs: dict[str, Path]  # name -> folder or file; the index of a folder has been checked
    outs: dict[str, Path]  # name -> temporary folder or file; renamed when the stage has succeeded
    indexes: dict[str, dict[str, Any]]  # name of an input folder -> its index.json
    scratch: Path  # for checkpoints; survives a kill, is not an output; its name is a hash of parameters, inputs and code
    tracker: Tracker
    is_main: bool  # True in the only process that writes
    content: dict[str, dict[str, Any]] = field(default_factory=dict)  # name of an output -> the stage's own part of its index.json


@dataclass(frozen=True)
class Contract(Generic[P]):
    """The contract of a stage. `reads` and `writes` are names below the data folder: with a suffix a file, else a folder."""

    name: str
    run: Callable[[Stage[P]], None]
    _: KW_ONLY
    reads: tuple[str, ...]
    writes: tuple[str, ...]

    def main(self) -> None:
        """The command `python -m stages.<name>`: exit status 0 only if every output is in place. After Ctrl-C it is 130."""
        doc = sys.modules["__main__"].__doc__ or ""
        parser = argparse.ArgumentParser(
            prog=f"python -m stages.{self.name}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="parameters of all stages (default: %(default)s)")
        parser.add_argument("--data", type=Path, default=Path("data"), help="folder of inputs and outputs (default: %(default)s)")
        arguments = parser.parse_args()
        logging.basicConfig(format=f"%(asctime)s {self.name} %(levelname)s: %(message)s", datefmt="%H:%M:%S")
        logging.getLogger("darkroom").setLevel(logging.INFO)
        logging.getLogger("__main__").setLevel(logging.INFO)
        try:
            with stoppable(f"{self.name}: interrupted. No incomplete output was left; the same command starts again."):
                self.execute(params_file=arguments.params, data=arguments.data)
        except ValueError as error:
            sys.exit(f"{self.name}: {error}")
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            free = shutil.disk_usage(arguments.data).free / 2**20
            sys.exit(
                f"{self.name}: the disk of {arguments.data.resolve()} is full ({free:.0f} MiB free). No incomplete output was left. "
                "Free some space (`dvc gc --workspace` removes old outputs) and run the same command again."
            )

    def execute(self, *, params_file: Path, data: Path) -> None:
        """Run the stage in this process.

        Raises:
            ValueError: a parameter is invalid, or an input is missing, damaged or from another run.
            OSError: the outputs could not be written.
        """
        params = cast(P, load_params(params_file)[self.name])
        indexes = {item: read_index(data / item) for item in self.reads if item != RAW and _is_folder(item)}
        check_lineage(indexes)
        fingerprints = {item: index["fingerprint"] for item, index in indexes.items()}
        code = hash_json(code_identity(self.name))
        key = hash_json({"params": params.model_dump(), "inputs": fingerprints, "code": code})[:16]
        scratch = data.parent / ".scratch" / self.name / key
        is_main = int(os.environ.get("RANK", "0")) == 0
        with ExitStack() as stack:
            tracker = stack.enter_context(
                stage_run(
                    self.name,
                    params=params.model_dump(),
                    key=key,
                    inputs=fingerprints,
                    params_file=params_file,
                    scratch=scratch,
                    enabled=is_main,
                )
            )
            outs = {item: stack.enter_context(replacing(data / item)) if is_main else data / item for item in self.writes}
            stage = Stage(self.name, params, {item: data / item for item in self.reads}, outs, indexes, scratch, tracker, is_main)
            if is_main:
                record = stack.enter_context(replacing(data / "runs" / f"{self.name}.json"))
                _make_folders(outs)
            self.run(stage)
            if is_main:
                for item in filter(_is_folder, outs):
                    content = stage.content.get(item, {})
                    write_index(outs[item], stage=self.name, params=params.model_dump(), inputs=indexes, content=content)
                write_json(record, {**tracker.record, "code": code})
        if is_main:
            shutil.rmtree(scratch, ignore_errors=True)  # the outputs are in place; a forced re-run starts from the beginning
        logger.info("%s is done: %s", self.name, ", ".join(str(data / item) for item in self.writes))


def _is_folder(item: str) -> bool:
    return not Path(item).suffix


def _make_folders(outs: dict[str, Path]) -> None:
    for item in filter(_is_folder, outs):
        outs[item].mkdir(parents=True)
