"""The command `darkroom`, for everything except the pipeline. Same as `python -m darkroom.cli`.

One file per group of commands. A command imports what it needs inside its function, so that `darkroom --help` answers at once.
"""

import logging
import sys
from collections.abc import Callable, Sequence
from textwrap import indent
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from darkroom.cli.draw import edit, interpolate, sample
from darkroom.cli.models import export_model, import_model, promote, rollback
from darkroom.cli.params import params, plan
from darkroom.cli.photos import demo_data, doctor
from darkroom.cli.tune import tune
from darkroom.ending import stoppable

COMMANDS: dict[str, Callable[..., None]] = {
    "demo-data": demo_data,
    "params": params,
    "plan": plan,
    "tune": tune,
    "doctor": doctor,
    "sample": sample,
    "edit": edit,
    "interpolate": interpolate,
    "import": import_model,
    "export": export_model,
    "promote": promote,
    "rollback": rollback,
}


class Command(TyperCommand):
    """The help is the function's docstring; the part after `Examples:` is shown below the options."""

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        formatter.write("\n" + indent(self.parts[0], "  ") + "\n")

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        lines = [line.strip() for line in self.parts[1].splitlines() if line.strip()]
        formatter.write("\nExamples:\n" + indent("\n".join(lines), "  ") + "\n")

    def invoke(self, ctx: Any) -> None:
        """A `ValueError` becomes one paragraph on stderr and exit status 1, Ctrl-C one line and exit status 130."""
        logging.basicConfig(format=f"{ctx.command_path}: %(message)s")
        try:
            with stoppable(f"{ctx.command_path}: interrupted. No incomplete file was left."):
                super().invoke(ctx)
        except ValueError as error:
            sys.exit(f"{ctx.command_path}: {error}")

    @property
    def parts(self) -> tuple[str, str]:
        description, _, examples = (self.help or "").partition("\nExamples:\n")
        return description.strip(), examples


class Group(TyperGroup):
    def get_help_option(self, ctx: Any) -> Any:
        """A flag that is not given is False. For None, typer would import pydantic, which takes 0.2 seconds."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.default = False
        return option


def build_app() -> typer.Typer:
    app = typer.Typer(
        cls=Group,
        help="Train your own text-to-image model on your own photos. `dvc repro` runs the pipeline.",
        epilog="`darkroom COMMAND --help` explains a command, with examples.",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # importing rich takes longer than all else
    )
    for name, function in COMMANDS.items():
        summary = (function.__doc__ or "").partition("\n")[0]
        app.command(name, cls=Command, short_help=summary)(function)
    return app


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; return if it succeeds."""
    try:
        build_app()(argv, prog_name="darkroom")
    except SystemExit as end:
        if end.code:
            raise
