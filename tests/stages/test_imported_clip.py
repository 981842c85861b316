"""The text encoder of an imported Stable Diffusion in the pipeline: it conditions, and whatever needs an image encoder says so."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from darkroom.evaluation.alignment import clip_metrics
from darkroom.evaluation.extractors import make_extractor
from darkroom.interchange.text_encoder import model_cfg
from darkroom.models.clip import ClipTowers
from darkroom.models.text_conditioning import TextConditioning
from darkroom.param_groups import FeatureParams
from tests.models.tiny_clip import TINY
from tests.tiny_run import make_project, run_stage


@pytest.fixture
def imported(tmp_path: Path) -> Path:
    """A folder as `darkroom import` writes it."""
    config = model_cfg(width=32, heads=1, layers=2, context_length=77, mlp_ratio=4.0, quick_gelu=True)
    whole = ClipTowers.build(TINY | {"text_width": 32, "context_length": 77}, seed=0)
    weights = {
        key: value for key, value in whole.model.state_dict().items() if not key.startswith(("visual", "logit_scale", "text_projection"))
    }
    clip = ClipTowers.text_only(config, weights, conditioning=TextConditioning("last", "end"), where="a test")
    clip.save(tmp_path / "imported")
    return tmp_path / "imported"


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({}, TextConditioning("last", "end")),
        ({"text_layer": "penultimate"}, TextConditioning("penultimate", "end")),
        ({"pad_token": "zero"}, TextConditioning("last", "zero")),
    ],
)
def test_train_clip_keeps_what_the_source_says_unless_told(
    imported: Path, tmp_path: Path, choice: dict[str, str], expected: TextConditioning
) -> None:
    root = tmp_path / "project"
    make_project(root, train_clip={"mode": "pretrained", "pretrained": str(imported), **choice})
    run_stage("ingest", root)
    run_stage("train_clip", root)
    clip = ClipTowers.load(root / "data" / "clip")
    assert clip.conditioning == expected
    assert not clip.has_image_encoder


def test_a_text_encoder_alone_cannot_be_trained(imported: Path, tmp_path: Path) -> None:
    make_project(tmp_path / "project", train_clip={"mode": "finetune", "pretrained": str(imported)})
    run_stage("ingest", tmp_path / "project")
    with pytest.raises(ValueError, match=r"This CLIP has no image encoder"):
        run_stage("train_clip", tmp_path / "project")


def test_evaluation_in_features_of_a_tower_that_is_not_there_is_refused_before_anything_is_drawn(imported: Path) -> None:
    clip = ClipTowers.load(imported)
    with pytest.raises(ValueError, match=r"no image encoder.*evaluate\.features\.kind: squeezenet"):
        make_extractor(FeatureParams(kind="clip"), clip, "fingerprint", torch.device("cpu"))


def test_evaluation_goes_without_scores_of_a_tower_that_is_not_there(imported: Path) -> None:
    clip, samples = ClipTowers.load(imported), np.zeros((1, 8, 8, 3), np.uint8)
    assert clip_metrics(clip, samples, ["a cat"], cast(Any, None), batch_size=1) == {}
