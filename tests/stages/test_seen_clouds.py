"""What was seen once: brown clouds, drawn by a model of photos without captions, got the numbers of a perfect model and were promoted.

KID 0.0008 ± 0.0008, Fréchet distance below its floor, precision 0.95, retrieval 1.00, champion. Each of these lines has its assertion here.
"""

from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from darkroom.data.shards import ImageShards
from darkroom.tracking.gate import PromotionRule, Report, judge
from tests.stages.test_evaluate import draw, evaluate, make_models
from tests.tiny_run import make_project, run_stage

RULE = PromotionRule(metric="kid", standard_errors=2.0, max_copied_fraction=0.01, min_progress=0.5)  # the defaults of `register`
CATS = Path(__file__).parents[3] / "shared" / "data" / "cats"  # where they are missing, toy cats take their place
ONE_CAPTION = {"side": 32, "num_workers": 1, "val_fraction": 0.45, "captions": ["text_file"]}
NUM_SAMPLES = 64


def clouds(photos: np.ndarray) -> np.ndarray:
    """The colours and the light of the photos, and nothing that one could name: half of one and half of another, blurred."""
    mixed = (photos.astype(np.float32) + np.roll(photos, 1, axis=0)) / 2
    return gaussian_filter(mixed, (0, 5, 5, 0), mode="nearest").round().astype(np.uint8)


def project(root: Path) -> Path:
    """Photos with one caption, nearly half of them held out, and models that nobody trained."""
    make_project(root, num_cats=260, ingest=ONE_CAPTION)
    if CATS.is_dir():
        for path in (root / "data" / "raw").iterdir():
            path.unlink()
        for path in sorted(CATS.glob("*.jpg"))[:260]:
            (root / "data" / "raw" / path.name).symlink_to(path)
    run_stage("ingest", root)
    make_models(root / "data", side=32)
    return root


@pytest.mark.slow
def test_clouds_of_photos_without_captions_are_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_TRACKING", "off")
    root = project(tmp_path / "project")
    train = ImageShards(root / "data" / "shards", "train")
    draw(monkeypatch, clouds(train.images(range(NUM_SAMPLES))))
    metrics = evaluate(root, num_samples=NUM_SAMPLES)
    assert metrics["unfit_because"] == ""
    assert metrics["kid"] > 5 * metrics["kid_standard_error"]
    assert metrics["kid_p"] <= 0.001
    assert metrics["frechet_distance"] > 2 * metrics["frechet_distance_photos"]
    assert metrics["precision"] < 0.1 < 0.5 < metrics["precision_photos"]
    assert metrics["recall"] < 0.1 < 0.5 < metrics["recall_photos"]
    assert metrics["recognised"] < metrics["recognised_photos"] / 2
    assert not [key for key in metrics if key.startswith(("retrieval", "clip_score"))]
    assert not judge(Report.read(metrics), None, RULE).passed
    assert "not yet like the photos" in (root / "data" / "report" / "report.md").read_text(encoding="utf-8")


def test_the_runs_own_clip_is_no_extractor_where_all_captions_are_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_TRACKING", "off")
    root = tmp_path / "project"
    make_project(root, num_cats=60, ingest=ONE_CAPTION | {"side": 16})
    run_stage("ingest", root)
    make_models(root / "data")
    metrics = evaluate(root, num_samples=8, features={"kind": "clip"})
    assert "all of them have the prompt" in metrics["unfit_because"]
    assert "kid" not in metrics
    verdict = judge(Report.read(metrics), None, RULE)
    assert not verdict.passed
    assert "all of them have the prompt" in verdict.reason
