"""The table of variants: what they share runs once, and a row holds what was measured."""

import csv
import json
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from benchmarks import ablation
from darkroom.demo.toy_cats import draw_toy_cats
from darkroom.params_file import merged
from darkroom.source_code import code_identity
from tests.tiny_run import CHANGES, STAGES

VARIANTS = {
    "base": None,
    "adamw": {"train_unet": {"optimizer": "adamw"}},
    "larger": {"ingest": {"side": 32}},
}


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    shared = merged(CHANGES, {"train_unet": {"optimizer": "muon"}})
    (tmp_path / "preset.yaml").write_text("evaluate: {num_samples: 8}\n")
    file = tmp_path / "plan.yaml"
    YAML().dump({"preset": str(tmp_path / "preset.yaml"), "changes": shared, "seeds": [0, 1], "variants": VARIANTS}, file)
    return file


def test_variants_share_the_stages_before_their_first_change(plan: Path, tmp_path: Path) -> None:
    found = {(run.variant, run.seed): ablation.folders(run, tmp_path, tmp_path) for run in ablation.runs(ablation.read_yaml(plan))}
    assert list(found) == [("base", 0), ("adamw", 0), ("larger", 0), ("base", 1), ("adamw", 1), ("larger", 1)]
    base = found["base", 0]
    for other in (found["adamw", 0], found["base", 1]):
        assert [stage for stage in ablation.STAGES if other[stage] != base[stage]] == ["train_unet", "evaluate"]
    assert not set(base.values()) & set(found["larger", 0].values())


def test_other_photos_and_other_code_are_measured_anew(plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    run = next(ablation.runs(ablation.read_yaml(plan)))
    before = ablation.folders(run, tmp_path / "photos", tmp_path)
    assert ablation.folders(run, tmp_path / "photos", tmp_path) == before
    (tmp_path / "photos" / "new.jpg").write_bytes(b"1")
    with_photo = ablation.folders(run, tmp_path / "photos", tmp_path)
    assert not set(before.values()) & set(with_photo.values())
    monkeypatch.setattr(ablation, "code_identity", lambda stage: {"train_unet": "new"}.get(stage, code_identity(stage)))
    changed = ablation.folders(run, tmp_path / "photos", tmp_path)
    assert [stage for stage in ablation.STAGES if changed[stage] != with_photo[stage]] == ["train_unet", "evaluate"]


def test_each_variant_has_a_row_and_a_second_start_measures_only_what_is_missing(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    def run(stage: str, folder: Path) -> float:
        started.append(stage)
        STAGES[stage].execute(params_file=folder / "params.yaml", data=folder / "data")
        return 2.5

    draw_toy_cats(tmp_path / "photos", num_cats=24, size=16, seed=0)
    content = YAML().load(plan)
    content["variants"].pop("larger")
    content["seeds"] = [0]
    YAML().dump(content, plan)
    out = tmp_path / "results.csv"
    monkeypatch.setattr(ablation, "_run", run)
    monkeypatch.setattr(
        sys, "argv", ["", str(plan), "--photos", str(tmp_path / "photos"), "--work", str(tmp_path / "work"), "--out", str(out)]
    )
    ablation.main()
    assert started == [*ablation.STAGES, "train_unet", "evaluate"]
    ablation.main()
    assert len(started) == 8
    lines = list(csv.DictReader(out.open()))
    assert [(line["variant"], line["seed"], line["pictures"], line["train_unet_cpu_seconds"]) for line in lines] == [
        ("base", "0", "32", "2.5"), ("adamw", "0", "32", "2.5")
    ]  # fmt: skip
    assert lines[0]["val_loss"] != lines[1]["val_loss"]
    for run_of in ablation.runs(ablation.read_yaml(plan)):
        metrics = json.loads(
            (ablation.folders(run_of, tmp_path / "photos", tmp_path / "work")["evaluate"] / "data/report/metrics.json").read_text()
        )
        line = next(line for line in lines if line["variant"] == run_of.variant)
        assert float(line["reconstruction_psnr"]) == pytest.approx(metrics["reconstruction_psnr"], rel=1e-5)
