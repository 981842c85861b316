"""The bundle of a registered version (VAE, U-Net, text encoder, lineage, README), and the MLflow model around it."""

import json
import os
import shutil
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from darkroom.provenance import write_json
from darkroom.sampling import PARTS
from darkroom.sampling.request import HINTS, OPTIONS, Request

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

BUNDLE = "bundle"  # name of the artifact
MLFLOW_TYPES = {int: "long", float: "double"}  # every other type is "string"
REQUIREMENTS = (  # what sampling imports; a registered version pins the installed versions
    *("torch", "torchvision", "open-clip-torch", "safetensors", "numpy", "scipy", "pillow"),
    *("pydantic", "ruamel.yaml", "filelock", "tqdm", "mlflow", "pandas"),
)


def build_bundle(folder: Path, *, name: str, parts: dict[str, Path], lineage: dict[str, Any], metrics: dict[str, float]) -> None:
    """Fill the empty `folder` with the parts of the model, `lineage.json` and `README.md`."""
    for part in PARTS:
        shutil.copytree(parts[part], folder / part, copy_function=_link_or_copy)
    write_json(folder / "lineage.json", lineage)
    (folder / "README.md").write_text(_readme(name, lineage, metrics), encoding="utf-8")


def _link_or_copy(source: str, target: str) -> None:
    """Make a hard link, which takes no disk space. Symbolic links of DVC's cache are resolved, because MLflow refuses them."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:  # another disk, or a file system without links
        shutil.copy(source, target)


def _readme(name: str, lineage: dict[str, Any], metrics: dict[str, float]) -> str:
    numbers = "\n".join(f"| {key} | {value:.6g} |" for key, value in sorted(metrics.items()))
    facts = "\n".join(f"| {key} | `{value}` |" for key, value in sorted(lineage.items()))
    return f"""# {name}

A text-to-image latent diffusion model made with Darkroom: the text encoder in `clip/` (open_clip's layout), the autoencoder
in `vae/` and the denoiser in `unet/` (diffusers' layout), all safetensors.

```python
from darkroom.open_model import open_model

images = open_model("this folder").sample(["a cat"], seeds=[0])  # uint8 (1, H, W, 3)
```

## Evaluation metrics

| metric | value |
|---|---|
{numbers}

## Lineage

| | |
|---|---|
{facts}
"""


def save_served_model(path: Path, bundle: Path, *, run_id: str, model_id: str) -> None:
    """Write an MLflow model to `path`: the bundle, this package's source, served_model.py, signature and example.

    To run it, only the packages of REQUIREMENTS are needed: it contains the source of this package.
    """
    from mlflow import pyfunc
    from mlflow.models import Model

    import darkroom

    pyfunc.save_model(
        path=str(path),
        python_model=str(Path(__file__).with_name("served_model.py")),
        artifacts={BUNDLE: str(bundle)},
        code_paths=[str(Path(darkroom.__file__).parent)],
        signature=_signature(bundle),
        input_example={"prompt": ["a cat"]},
        pip_requirements=[f"{package}=={version(package)}" for package in REQUIREMENTS],
        mlflow_model=Model(run_id=run_id, model_id=model_id),
    )
    model = Model.load(str(path))
    flavor = model.flavors["python_function"]  # MLflow writes absolute paths of this machine here
    flavor["artifacts"][BUNDLE]["uri"] = flavor["artifacts"][BUNDLE]["path"]
    flavor["model_code_path"] = "served_model.py"
    model.save(str(path / "MLmodel"))


def _signature(bundle: Path) -> "ModelSignature":
    """The parameters are `seed` and the served options of a request, with the defaults of the model."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    of_model = json.loads((bundle / "unet" / "diffusion.json").read_text(encoding="utf-8"))
    of_model.setdefault("spacing", "trailing")  # older models do not store it
    defaults = {field.name: of_model.get(field.name, field.default) for field in fields(Request) if OPTIONS[field.name].served}
    return ModelSignature(
        inputs=Schema([ColSpec("string", "prompt")]),
        outputs=Schema([ColSpec("string", "prompt"), ColSpec("long", "seed"), ColSpec("string", "png")]),
        params=ParamSchema(
            [
                ParamSpec("seed", "long", 0),
                *(ParamSpec(name, MLFLOW_TYPES.get(HINTS[name][0], "string"), default) for name, default in defaults.items()),
            ]
        ),
    )
