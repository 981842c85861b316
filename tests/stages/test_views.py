"""Several crops of a photo and their mirror images, from ingest to the trained U-Net."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from darkroom.data.latents import LatentShards
from darkroom.data.shards import ImageShards
from darkroom.demo.toy_cats import draw_toy_cats
from darkroom.models.autoencoder import load_autoencoder
from darkroom.models.unet import UNet2DConditionModel
from darkroom.models.weights import load_model
from darkroom.pixels import to_float
from darkroom.provenance import read_index
from darkroom.training.diffusion_task import DiffusionTask
from tests.tiny_run import run_stage, write_params

CROPS = {"ingest": {"crops": 3}}
BEGIN = {"train_clip": {"steps": 1}, "train_vae": {"steps": 1}}
KEPT = {"train_vae": {"init": "data/vae"}, "train_clip": {"mode": "pretrained", "pretrained": "data/clip"}}  # as init knows them


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project with latents of three crops a photo, each with its mirror image."""
    root = tmp_path_factory.mktemp("views")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DARKROOM_TRACKING", "off")
        draw_toy_cats(root / "data" / "raw", num_cats=24, size=48, seed=0)
        write_params(root / "params.yaml", **CROPS, **BEGIN)
        for name in ("ingest", "train_clip", "train_vae", "cache_latents"):
            run_stage(name, root)
        yield root


@torch.no_grad()
def test_the_views_of_the_cache_are_the_crops_and_their_mirror_images_with_true_labels(finished):
    vae = load_autoencoder(finished / "data" / "vae")
    for split, num_crops in (("train", 3), ("val", 1)):
        photos, latents = ImageShards(finished / "data" / "shards", split), LatentShards(finished / "data" / "latents", split)
        everything = range(len(photos))
        assert latents.num_views == 2 * num_crops
        assert latents.keys == photos.keys
        for view in range(latents.num_views):
            images = to_float(photos.images(everything, view // 2))
            expected = torch.stack(vae.encode(images.flip(-1) if view % 2 else images), 1)
            found = latents.moments(everything, [view] * len(photos))
            np.testing.assert_allclose(found, expected.numpy(), rtol=2e-3, atol=2e-3)  # float16
            shifts = np.array([photos.shifts(i)[view // 2] for i in everything]) * (-1 if view % 2 else 1, 1, 1)
            labels = latents.labels(everything, [view] * len(photos))
            np.testing.assert_allclose(labels, np.column_stack([shifts, np.full(len(photos), view % 2)]), atol=1e-6)
            assert (np.ptp(labels[:, 2]) > 0.01) == (view > 1)
    assert read_index(finished / "data" / "latents")["content"]["views"] == {"train": 6, "val": 2}


@pytest.fixture
def workspace(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project, to be run in its own folder."""
    monkeypatch.setenv("DARKROOM_TRACKING", "off")
    shutil.copytree(finished, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def train_unet(root: Path, **changes: Any) -> dict[str, str]:
    """Hashes of the files of the trained U-Net."""
    write_params(root / "params.yaml", **CROPS, **KEPT, train_unet={"augmentation_labels": True, "lr": 1e-2} | changes)
    run_stage("train_unet", root)
    files: dict[str, str] = read_index(root / "data" / "unet")["files"]
    return files


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "diffusion_pytorch_model.safetensors")


def test_the_published_unet_has_the_weights_of_any_other_and_diffusers_reads_it(workspace):
    told = (train_unet(workspace), weights(workspace / "data" / "unet"))[1]
    theirs = diffusers.UNet2DConditionModel.from_pretrained("data/unet")
    ours = load_model(UNet2DConditionModel, "data/unet")
    x, timesteps, context = torch.ones(1, 4, 8, 8), torch.tensor([500]), torch.ones(1, 24, 32)
    with torch.no_grad():
        torch.testing.assert_close(theirs(x, timesteps, context).sample, ours(x, timesteps, context), rtol=1e-4, atol=1e-5)
    train_unet(workspace, augmentation_labels=False)
    untold = weights(workspace / "data" / "unet")
    assert set(told) == set(untold) == set(theirs.state_dict())
    assert any(not torch.equal(told[name], untold[name]) for name in told)


class Cut(Exception):  # noqa: N818 - of the power
    pass


def test_a_run_with_labels_that_was_cut_ends_in_the_same_bytes(workspace, monkeypatch):
    changes = {"ema_decay": 0.5, "steps": 6, "checkpoint_every": 4}  # labels reach their weights in the third step
    expected = train_unet(workspace, **changes)
    batch = DiffusionTask.batch

    def dies(self: DiffusionTask, positions: range) -> dict[str, torch.Tensor]:
        if positions.start >= 5 * 8:
            raise Cut
        return batch(self, positions)

    with monkeypatch.context() as patch:
        patch.setattr(DiffusionTask, "batch", dies)
        with pytest.raises(Cut):
            train_unet(workspace, **changes)
    (checkpoint,) = (workspace / ".scratch" / "train_unet").rglob("step-00000004")
    for name in ("net", "ema"):
        assert load_file(checkpoint / f"{name}.safetensors")["augmentation_embedding.weight"].any()
    assert train_unet(workspace, **changes) == expected


@pytest.mark.parametrize("changes", [{}, {"lora": {"rank": 2}}, {"steps": 0}], ids=["all weights", "lora", "as it is"])
def test_a_published_unet_can_be_tuned_with_labels_and_has_the_same_weights_again(workspace, changes):
    train_unet(workspace)
    shutil.copytree("data/unet", "imported/unet")
    before = weights(workspace / "imported" / "unet")
    train_unet(workspace, init="imported/unet", **changes)
    after = weights(workspace / "data" / "unet")
    assert {name: value.shape for name, value in after.items()} == {name: value.shape for name, value in before.items()}
    assert all(torch.equal(after[name], before[name]) for name in before) == (changes == {"steps": 0})
