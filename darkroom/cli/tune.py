"""The command `tune`: params.yaml for a run that starts from a whole model."""

import os
from pathlib import Path
from typing import Annotated

import typer


def tune(
    source: Annotated[
        str,
        typer.Option(
            "--from", metavar="MODEL", help="A folder with clip/, vae/ and unet/, data, or models:/NAME@ALIAS from the MLflow registry"
        ),
    ],
    params: Annotated[Path, typer.Option(metavar="FILE", help="The parameters to change")] = Path("params.yaml"),
) -> None:
    """Prepare params.yaml to train a model further on your photos.

    Sets the parameters by which `dvc repro` uses the text encoder and the VAE of a model as they are and trains its
    U-Net on: their folders, and what the U-Net was made for (side, crop and captions of photos, schedule, prediction).
    All other values stay.
    A registered version, and the model in data/, are first copied into models/, so that the run can be repeated.

    Examples:
      darkroom tune --from models:/darkroom@champion
      darkroom tune --from models/sd15
      darkroom tune --from data --params params.yaml
    """
    from darkroom.interchange.tuning import carried_over
    from darkroom.params_file import load_params
    from darkroom.params_text import set_values

    model = kept_model(source, params.parent)
    is_absolute = model.is_absolute() and model == Path(source)
    name = str(model) if is_absolute else os.path.relpath(model, params.parent)
    values = carried_over(model, name)
    if values["ingest"].get("crop") == "centre":
        values["ingest"] = own_template(params) | values["ingest"]
    changes = set_values(params, values)
    print("\n".join(changes or [f"{params} is up to date."]))
    sections = load_params(params)
    if "crop" not in values["ingest"]:
        print(f"{name} does not say how its photos were cropped; ingest.crop stays {sections['ingest'].model_dump()['crop']}.")
    training = sections["train_unet"].model_dump()
    print(
        f"`dvc repro` starts from {name} now, with train_unet.steps {training['steps']} and train_unet.lr {training['lr']:g}. A trained "
        "U-Net needs a smaller learning rate than a new one (docs/fine_tuning.md)."
    )


def own_template(params: Path) -> dict[str, str]:
    """`caption_template` of a params.yaml, if it has one, without the subject, which `crop: centre` does not look for."""
    from darkroom.data.captions import without_subject
    from darkroom.params_file import read_params

    ingest = read_params(params).get("ingest")
    template = ingest.get("caption_template") if isinstance(ingest, dict) else None
    return {"caption_template": without_subject(template)} if isinstance(template, str) else {}


def kept_model(source: str, project: Path) -> Path:
    """The folder of a model that stays as it is: that of `source`, or a copy of it in models/ of the project.

    Raises:
        ValueError: there is no such model.
    """
    from darkroom.interchange.tuning import keep
    from darkroom.open_model import REGISTERED
    from darkroom.provenance import read_index
    from darkroom.tracking.registry import registered_version

    if source.startswith(REGISTERED):
        version, folder = registered_version(source, project)
        copy = project / "models" / "-v".join(version.removeprefix(REGISTERED).split("/"))
    elif Path(source).resolve() == (project / "data").resolve():  # the next run writes there
        folder = Path(source)
        copy = project / "models" / f"data-{read_index(folder / 'unet')['fingerprint'][:8]}"
    else:
        return Path(source)
    keep(folder, copy)
    return copy
