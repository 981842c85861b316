"""Pipelines of both families: made by diffusers, imported by us, exported again. Once for all tests of this folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from darkroom.interchange.transfer import export_model, import_model
from darkroom.sampling import TextToImage
from tests.interchange.pipelines import Kind, make_pipeline


@dataclass(frozen=True)
class Imported:
    kind: Kind
    pipeline: Any  # diffusers' own
    source: Path  # where it saved itself
    folder: Path  # what we made of it
    artist: TextToImage


@pytest.fixture(scope="session", params=["sd1", "sd2"])
def imported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Imported:
    root = tmp_path_factory.mktemp(request.param)
    pipeline = make_pipeline(request.param, "epsilon" if request.param == "sd1" else "v_prediction")
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(root / "source")
    import_model(str(root / "source"), root / "model")
    artist = TextToImage.load(root / "model", torch.device("cpu"))
    return Imported(request.param, pipeline, root / "source", root / "model", artist)


@pytest.fixture(scope="session")
def exported(imported: Imported) -> Path:
    """The imported model as a pipeline's folder."""
    export_model(imported.folder, imported.folder.with_name("exported"), "diffusers")
    return imported.folder.with_name("exported")


@pytest.fixture(scope="session")
def single_file(imported: Imported) -> Path:
    """The imported model as one file."""
    export_model(imported.folder, imported.folder.with_name("model.safetensors"), "single-file")
    return imported.folder.with_name("model.safetensors")
