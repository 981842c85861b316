"""The commands `params`, which writes params.yaml from the defaults and a preset, and `plan`, which says what a run of it takes."""

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


def plan(
    params: Annotated[Path, typer.Option(metavar="FILE", help="Parameters of all stages.")] = Path("params.yaml"),
    data: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of inputs and outputs; the photos are in its raw/.")] = Path("data"),
    once: Annotated[bool, typer.Option("--once", help="Estimate nothing if these parameters have been checked here before.")] = False,
) -> None:
    """Check params.yaml and what it names, and estimate time, memory and disk of the run.

    Examples:
      darkroom plan
      darkroom plan --params mine.yaml --data data
    """
    from darkroom.params_file import load_params
    from darkroom.provenance import hash_json, replacing

    sections = load_params(params)
    raw, told = data / "raw", data.parent / ".scratch" / "plan"
    here = raw.is_dir() and any(raw.iterdir())
    if not here and not raw.with_suffix(".dvc").is_file():  # with that file, DVC can fetch them
        raise ValueError(f"{raw} holds no photos. Put them there, or draw toy cats: `darkroom demo-data {raw}`.")
    key = hash_json({name: section.model_dump() for name, section in sections.items()})
    if not here or (once and told.is_file() and told.read_text(encoding="utf-8") == key):
        return
    from darkroom.run_plan import plan_lines

    print("\n".join(plan_lines(sections, raw)))
    with replacing(told) as file:
        file.write_text(key, encoding="utf-8")
