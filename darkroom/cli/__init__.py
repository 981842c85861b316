"""The command `darkroom`: everything beside the pipeline that a person types. The same as `python -m darkroom.cli`.

One file a group of commands. A command imports what it needs inside its function, so that `darkroom --help` is there at once.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from darkroom.cli.command import Commands, add_command
from darkroom.cli.draw import add_edit, add_interpolate, add_sample
from darkroom.cli.params import params
from darkroom.cli.photos import add_demo_data, add_doctor
from darkroom.cli.registry import add_promote, add_rollback
from darkroom.cli.transfer import add_export, add_import


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command; a `ValueError` becomes one paragraph on stderr and exit status 1."""
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(format=f"darkroom {arguments.name}: %(message)s")
    try:
        arguments.command(arguments)
    except ValueError as error:
        sys.exit(f"darkroom {arguments.name}: {error}")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="darkroom",
        description="Train your own text-to-image model on your own photos. The pipeline itself is `dvc repro`.",
        epilog="`darkroom COMMAND --help` explains a command and gives examples.",
    )
    commands = parser.add_subparsers(title="commands", dest="name", metavar="COMMAND", required=True)
    for add in (
        add_demo_data,
        add_doctor,
        add_sample,
        add_edit,
        add_interpolate,
        add_import,
        add_export,
        add_promote,
        add_rollback,
        add_params,
    ):
        add(commands)
    return parser


def add_params(commands: Commands) -> None:
    parser = add_command(
        commands,
        "params",
        summary="print params.yaml, or update it",
        description="Prints a complete, commented params.yaml, or updates one and says what changed.",
        examples=["darkroom params photos-64-cpu > params.yaml", "darkroom params photos-64-cpu --update params.yaml"],
    )
    parser.add_argument("preset", nargs="?", metavar="PRESET", help="a name in presets/, or a file; without it the defaults")
    parser.add_argument("--update", type=Path, metavar="FILE", help="rewrite this file: set the preset's values, add new parameters")
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of params.yaml")
    parser.set_defaults(command=lambda arguments: params(arguments.preset, arguments.update, arguments.schema))
