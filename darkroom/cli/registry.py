"""Commands about registered versions: `promote` and `rollback`."""

import argparse
from typing import Any

from darkroom.cli.command import Commands, add_command


def add_promote(commands: Commands) -> None:
    parser = add_command(
        commands,
        "promote",
        summary="make a registered version the champion, whatever the gate said",
        description="Points `champion` at a version of a registered model, and `previous` at the champion until now.",
        examples=["darkroom promote darkroom", "darkroom promote darkroom 3"],
    )
    parser.add_argument("model", metavar="NAME", help="register.model_name of params.yaml")
    parser.add_argument("version", nargs="?", type=int, metavar="VERSION", help="(default: the challenger)")
    parser.set_defaults(command=_promote)


def _promote(arguments: argparse.Namespace) -> None:
    from darkroom.tracking.registry import open_registry, promote

    _print_champion(promote(open_registry(), arguments.model, arguments.version))


def add_rollback(commands: Commands) -> None:
    parser = add_command(
        commands,
        "rollback",
        summary="make the previous champion the champion again",
        description="Swaps `champion` and `previous` of a registered model; doing it twice changes nothing.",
        examples=["darkroom rollback darkroom"],
    )
    parser.add_argument("model", metavar="NAME", help="register.model_name of params.yaml")
    parser.set_defaults(command=_rollback)


def _rollback(arguments: argparse.Namespace) -> None:
    from darkroom.tracking.registry import open_registry, rollback

    _print_champion(rollback(open_registry(), arguments.model))


def _print_champion(change: dict[str, Any]) -> None:
    before, after = change["champion"]["before"], change["champion"]["after"]
    print(f"The champion of `{change['model_name']}` is version {after} now" + (f"; it was version {before}." if before else "."))
