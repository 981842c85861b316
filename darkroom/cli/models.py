"""Commands about whole models: `import`, `export`, `promote` and `rollback`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from darkroom.choices import ExportFormat, Prediction

Registered = Annotated[str, typer.Argument(metavar="NAME", help="Name in the registry, register.model_name of params.yaml")]


def import_model(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A pipeline folder, a single file, or OWNER/NAME on the hub")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder")],
    prediction: Annotated[
        Prediction | None,
        typer.Option(
            metavar="NAME", help="What the U-Net predicts: epsilon or v_prediction; for single files of 2.x, which do not contain it"
        ),
    ] = None,
) -> None:
    """Import a Stable Diffusion 1.x or 2.x as a model folder.

    Reads a diffusers pipeline folder, a single file (.safetensors, .ckpt) or a model of the Hugging Face hub,
    and writes a new folder with clip/, vae/ and unet/, to draw with or to train from.

    Examples:
      darkroom import stable-diffusion-v1-5/stable-diffusion-v1-5 models/sd15
      darkroom import ~/models/v1-5-pruned.safetensors models/sd15
      darkroom import ~/models/v2-1_768-ema-pruned.safetensors models/sd21 --prediction v_prediction
    """
    from darkroom.interchange.exchange import import_model

    import_model(source, out, prediction=prediction)
    print(f"{out}: draw with `darkroom sample --model {out}`, or train from it (docs/interchange.md).")


def export_model(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A folder with clip/, vae/ and unet/, or models:/NAME@ALIAS from the MLflow registry")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder, or a new file that ends in .safetensors")],
    format: Annotated[ExportFormat, typer.Option(help="For diffusers, or for single-file tools")],
) -> None:
    """Write a model for diffusers, ComfyUI, A1111.

    Writes a trained or imported model as a diffusers pipeline folder, or as a single file.
    Its model card explains how to load it, and where other programs need other settings.

    Examples:
      darkroom export data exported --format diffusers
      darkroom export models:/darkroom@champion cats.safetensors --format single-file
    """
    from darkroom.interchange.exchange import export_model
    from darkroom.open_model import model_folder

    written = export_model(model_folder(model), out, format)
    print(f"Written: {', '.join(map(str, written))}")


def promote(
    model: Registered, version: Annotated[int | None, typer.Argument(metavar="VERSION", show_default="the challenger")] = None
) -> None:
    """Make a registered version the champion, whatever the gate decided.

    Sets `champion` to a version of a registered model, and `previous` to the old champion.

    Examples:
      darkroom promote darkroom
      darkroom promote darkroom 3
    """
    from darkroom.tracking.registry import open_registry, promote

    _print_champion(promote(open_registry(), model, version))


def rollback(model: Registered) -> None:
    """Make the previous champion the champion again.

    Swaps `champion` and `previous` of a registered model. A second rollback undoes the first.

    Examples:
      darkroom rollback darkroom
    """
    from darkroom.tracking.registry import open_registry, rollback

    _print_champion(rollback(open_registry(), model))


def _print_champion(change: dict[str, Any]) -> None:
    before, after = change["champion"]["before"], change["champion"]["after"]
    print(f"The champion of `{change['model_name']}` is version {after} now" + (f"; it was version {before}." if before else "."))
