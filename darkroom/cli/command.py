"""What all commands have in common: a summary, a description and examples."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    Commands: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Commands = object


def add_command(commands: Commands, name: str, *, summary: str, description: str, examples: Sequence[str]) -> argparse.ArgumentParser:
    """The caller adds the arguments, and `parser.set_defaults(command=FUNCTION)`, a function of the parsed arguments."""
    return commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog="\n  ".join(["examples:", *examples]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
