"""Several crops of a photo and their mirror images, from ingest to the trained U-Net."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from darkroom.data.latents import LatentShards
from darkroom.data.shards import ImageShards
from darkroom.demo.toy_cats import draw_toy_cats
from darkroom.models.autoencoder import load_autoencoder
from darkroom.pixels import to_float
from darkroom.provenance import read_index
from tests.tiny_run import run_stage, write_params

CROPS = {"ingest": {"crops": 3}, "train_clip": {"steps": 1}, "train_vae": {"steps": 1}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project with latents of three crops a photo, each with its mirror image."""
    root = tmp_path_factory.mktemp("views")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DARKROOM_TRACKING", "off")
        draw_toy_cats(root / "data" / "raw", num_cats=24, size=48, seed=0)
        write_params(root / "params.yaml", **CROPS)
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
