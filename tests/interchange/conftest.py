"""Pipelines of both families: made by diffusers, imported by us, exported again. Once for all tests of this folder."""

from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pytest
import torch

from darkroom.interchange.exchange import export_model, import_model
from darkroom.sampling.text_to_image import TextToImage
from tests.interchange.pipelines import Kind, make_pipeline


class Imported:
    def __init__(self, kind: Kind, root: Path) -> None:
        self.kind = kind
        self.source = root / "source"  # where diffusers saved it
        self.folder = root / "model"  # what we made of it
        self.pipeline: Any = make_pipeline(kind, "epsilon" if kind == "sd1" else "v_prediction")
        self.pipeline.set_progress_bar_config(disable=True)
        self.pipeline.save_pretrained(self.source)
        import_model(str(self.source), self.folder)
        self.model = TextToImage.load(self.folder, torch.device("cpu"))

    @cached_property
    def exported(self) -> Path:
        """The imported model as a pipeline's folder."""
        export_model(self.folder, self.folder.with_name("exported"), "diffusers")
        return self.folder.with_name("exported")

    @cached_property
    def single_file(self) -> Path:
        """The imported model as one file."""
        export_model(self.folder, self.folder.with_name("model.safetensors"), "single-file")
        return self.folder.with_name("model.safetensors")


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Kind], Imported]:
    return cache(lambda kind: Imported(kind, tmp_path_factory.mktemp(kind)))


@pytest.fixture(scope="session", params=["sd1", "sd2"])
def imported(request: pytest.FixtureRequest, families: Callable[[Kind], Imported]) -> Imported:
    return families(request.param)


@pytest.fixture(scope="session")
def sd1(families: Callable[[Kind], Imported]) -> Imported:
    """For what does not depend on the family."""
    return families("sd1")
