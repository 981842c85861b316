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
    U-Net on: their folders, and what the U-Net was made for (side, schedule, prediction). All other values stay.
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
    changes = set_values(params, carried_over(model, name))
    print("\n".join(changes or [f"{params} is up to date."]))
    training = load_params(params)["train_unet"].model_dump()
    print(
        f"`dvc repro` starts from {name} now, with train_unet.steps {training['steps']} and train_unet.lr {training['lr']:g}. A trained "
        "U-Net needs a smaller learning rate than a new one (docs/fine_tuning.md)."
    )


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
