"""The command `params`: params.yaml from the defaults and a preset."""

from pathlib import Path
from typing import Annotated

import typer


def params(
    preset: Annotated[
        str | None, typer.Argument(help="A name in the folder presets/, or the path of such a file; without it the defaults.")
    ] = None,
    update: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Rewrite this file instead: set the preset's values, add new parameters, keep the rest."),
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of params.yaml, for editors.")] = False,
) -> None:
    """Print a complete, commented params.yaml, or update one and say what changed.

    Examples:
      darkroom params photos-64-cpu > params.yaml
      darkroom params photos-64-cpu --update params.yaml
    """
    from darkroom.params_file import read_preset
    from darkroom.params_text import params_text, schema_text, update_file

    if schema:
        print(schema_text(), end="")
    elif update is not None:
        print("\n".join(update_file(update, preset) or [f"{update} is up to date."]))
    elif preset is None:
        print(params_text({}, command="darkroom params"), end="")
    else:
        print(params_text(read_preset(preset), command=f"darkroom params {preset}"), end="")
