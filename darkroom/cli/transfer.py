"""Commands that exchange models with other programs: `import` and `export`."""

import argparse
from pathlib import Path

from darkroom.cli.command import Commands, add_command


def add_import(commands: Commands) -> None:
    parser = add_command(
        commands,
        "import",
        summary="make a model folder of a Stable Diffusion 1.x or 2.x",
        description="Reads the folder of a diffusers pipeline, a single file (.safetensors, .ckpt) or a model of the Hugging Face hub,\n"
        "and writes a new folder with clip/, vae/ and unet/, to draw with or to train from.",
        examples=[
            "darkroom import stable-diffusion-v1-5/stable-diffusion-v1-5 models/sd15",
            "darkroom import ~/models/v1-5-pruned.safetensors models/sd15",
            "darkroom import ~/models/v2-1_768-ema-pruned.safetensors models/sd21 --prediction v_prediction",
        ],
    )
    parser.add_argument("source", metavar="SRC", help="a pipeline's folder, a single file, or OWNER/NAME on the hub")
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    parser.add_argument("--prediction", metavar="NAME", help="epsilon or v_prediction, for single files of 2.x, which do not say it")
    parser.set_defaults(command=_import)


def _import(arguments: argparse.Namespace) -> None:
    from darkroom.interchange.exchange import import_model

    import_model(arguments.source, arguments.out, prediction=arguments.prediction)
    print(f"{arguments.out}: draw with `darkroom sample --model {arguments.out}`, or train from it (docs/interchange.md).")


def add_export(commands: Commands) -> None:
    parser = add_command(
        commands,
        "export",
        summary="write a model for diffusers, ComfyUI, A1111",
        description="Writes a trained or imported model as the folder of a diffusers pipeline, or as a single file.\n"
        "A model card says how to load it, and in which points other programs would draw something else.",
        examples=[
            "darkroom export data exported --format diffusers",
            "darkroom export models:/darkroom@champion cats.safetensors --format single-file",
        ],
    )
    parser.add_argument(
        "model", metavar="MODEL", help="a folder with clip/, vae/ and unet/, or models:/NAME@ALIAS from the MLflow registry"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder, or a new file that ends in .safetensors")
    parser.add_argument("--format", required=True, choices=["diffusers", "single-file"], help="for diffusers, or for single-file tools")
    parser.set_defaults(command=_export)


def _export(arguments: argparse.Namespace) -> None:
    from darkroom.interchange.exchange import export_model

    model = Path(arguments.model)
    if arguments.model.startswith("models:/"):
        from darkroom.tracking.registry import download

        model = download(arguments.model)
    written = export_model(model, arguments.out, arguments.format)
    print(f"Written: {', '.join(map(str, written))}")
