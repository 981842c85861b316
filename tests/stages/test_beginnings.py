"""Stages that go on from a model that stands already: what their checkpoints belong to."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from darkroom.models.autoencoder import AutoencoderKL
from darkroom.models.clip import ClipTowers
from darkroom.models.weights import load_model, save_model
from darkroom.provenance import read_index
from darkroom.training.clip_task import ClipTask
from darkroom.training.task import Batch
from darkroom.training.vae_task import VaeTask
from tests.tiny_run import make_project, run_stage, write_params


def change_vae(folder: Path) -> None:
    vae = load_model(AutoencoderKL, folder)
    torch.nn.init.ones_(vae.decoder.conv_in.weight)
    save_model(vae, folder)


def change_clip(folder: Path) -> None:
    clip = ClipTowers.load(folder)
    torch.nn.init.ones_(clip.model.text_projection)
    clip.save(folder)


@pytest.mark.parametrize(
    ("stage", "task", "beginning", "change"),
    [
        ("train_vae", VaeTask, {"init": "imported/vae"}, change_vae),
        ("train_clip", ClipTask, {"mode": "finetune", "pretrained": "imported/clip"}, change_clip),
    ],
)
def test_a_checkpoint_begun_from_other_weights_is_not_gone_on_with(
    stage: str,
    task: type[VaeTask | ClipTask],
    beginning: dict[str, str],
    change: Callable[[Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DARKROOM_TRACKING", "off")
    monkeypatch.chdir(tmp_path)
    out = stage.removeprefix("train_")
    make_project(tmp_path, **{stage: {"steps": 1}})
    for name in ("ingest", stage):
        run_stage(name, tmp_path)
    shutil.copytree(Path("data") / out, Path("imported") / out)
    write_params(tmp_path / "params.yaml", **{stage: beginning})
    batch = task.batch

    def dies(self: VaeTask | ClipTask, positions: range) -> Batch:
        if positions.start >= 2 * 8:
            raise RuntimeError("power cut")
        return batch(self, positions)

    with monkeypatch.context() as patch:
        patch.setattr(task, "batch", dies)
        with pytest.raises(RuntimeError, match="power cut"):
            run_stage(stage, tmp_path)
    assert list((tmp_path / ".scratch" / stage).rglob("step-00000002"))
    before = read_index(tmp_path / "data" / out)["content"]["init"]  # of the run from nothing

    change(tmp_path / "imported" / out)
    run_stage(stage, tmp_path)
    found = read_index(tmp_path / "data" / out)
    run_stage(stage, tmp_path)  # a finished run leaves no checkpoint: this one starts anew
    assert read_index(tmp_path / "data" / out)["files"] == found["files"]
    assert found["content"]["init"] != before == ""
