"""train_vae from an autoencoder that stands already: what its checkpoints belong to."""

import shutil
from pathlib import Path

import pytest
import torch

from darkroom.models.autoencoder import AutoencoderKL
from darkroom.models.weights import hash_init, load_model, save_model
from darkroom.provenance import read_index
from darkroom.training.batches import Batch
from darkroom.training.vae_task import VaeTask
from tests.tiny_run import make_project, run_stage, write_params


def test_a_checkpoint_begun_from_other_weights_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_TRACKING", "off")
    monkeypatch.chdir(tmp_path)
    make_project(tmp_path, train_vae={"steps": 1})
    for name in ("ingest", "train_vae"):
        run_stage(name, tmp_path)
    shutil.copytree("data/vae", "imported/vae")
    write_params(tmp_path / "params.yaml", train_vae={"init": "imported/vae"})
    batch = VaeTask.batch

    def dies(self: VaeTask, positions: range) -> Batch:
        if positions.start >= 2 * 8:
            raise RuntimeError("power cut")
        return batch(self, positions)

    with monkeypatch.context() as patch:
        patch.setattr(VaeTask, "batch", dies)
        with pytest.raises(RuntimeError, match="power cut"):
            run_stage("train_vae", tmp_path)
    assert list((tmp_path / ".scratch" / "train_vae").rglob("step-00000002"))

    vae = load_model(AutoencoderKL, "imported/vae")
    torch.nn.init.ones_(vae.decoder.conv_in.weight)
    save_model(vae, tmp_path / "imported" / "vae")
    run_stage("train_vae", tmp_path)
    found = read_index(tmp_path / "data" / "vae")
    run_stage("train_vae", tmp_path)  # a finished run leaves no checkpoint: this one starts anew
    assert read_index(tmp_path / "data" / "vae")["files"] == found["files"]
    assert found["content"]["init"] == hash_init("imported/vae")
