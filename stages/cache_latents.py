"""cache_latents: the training data of the U-Net, computed once.

Reads data/shards, data/vae, data/clip. Writes data/latents: the posterior mean and standard deviation of each crop of each photo
(not a sample of the posterior: training draws one at each step) and, with `flip`, of its mirror image; the token embeddings of each
distinct caption and of the empty prompt. The VAE is measured on held-out photos first: if it misses a limit of `gate`, the stage fails.
"""

import logging
from collections.abc import Iterator

import numpy as np
import torch

from darkroom.config import CacheLatentsParams
from darkroom.data.crops import Label, view_labels
from darkroom.data.latents import caption_key, prepared_by, write_captions, write_latents
from darkroom.data.shards import ImageShards
from darkroom.device import best_device, use_bf16
from darkroom.evaluation.reconstruction import check_gate, measure_vae
from darkroom.models.autoencoder import Autoencoder, load_autoencoder
from darkroom.models.clip import ClipTowers
from darkroom.pixels import to_float
from darkroom.progress import progress
from darkroom.stage import Contract, Stage

logger = logging.getLogger(__name__)


def run(stage: Stage[CacheLatentsParams]) -> None:
    params, out, device = stage.params, stage.outs["latents"], best_device()
    photos = {split: ImageShards(stage.inputs["shards"], split) for split in ("train", "val")}
    vae = load_autoencoder(stage.inputs["vae"]).to(device).eval()
    clip = ClipTowers.load(stage.inputs["clip"]).to(device).eval()
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=use_bf16(params.precision, device)):
        metrics, gate = measure_vae(vae, clip, photos["val"], batch_size=params.batch_size, device=device), params.gate
        if stage.indexes["clip"]["content"]["random_weights"]:
            logger.warning("CLIP is not trained, so no Fréchet distance is measured in its features, and gate.max_frechet is not required")
            metrics.pop("frechet", None)
            gate = gate.model_copy(update={"max_frechet": None})
        stage.tracker.log_metrics({f"held_out/{name}": value for name, value in metrics.items()}, step=0)
        check_gate(metrics, gate)
        splits = {
            split: write_latents(
                out, split=split, samples=encode_photos(vae, shards, params, device), samples_per_shard=params.samples_per_shard
            )
            for split, shards in photos.items()
        }
        captions = sorted({"", *photos["train"].captions, *photos["val"].captions})
        warn_of_cut_captions(clip, captions)
        splits["captions"] = write_captions(
            out, encode_captions(clip, captions, params.batch_size, device), samples_per_shard=params.samples_per_shard
        )
    side = photos["train"].size // vae.config.stride
    stage.content["latents"] = {
        "splits": splits,
        "latent_shape": [vae.config.latent_channels, side, side],
        "context_shape": [clip.context_length, clip.context_dim],
        "empty_caption_key": caption_key(""),
        "views": {split: shards.num_crops * (1 + params.flip) for split, shards in photos.items()},
        "num_captions": len(captions) - 1,
        "prepared_by": {"ingest": prepared_by(stage.indexes["shards"]), "cache_latents": {"gate": gate.model_dump()}},
        "reconstructions": metrics,
    }


def encode_photos(
    vae: Autoencoder, photos: ImageShards, params: CacheLatentsParams, device: torch.device
) -> Iterator[tuple[str, str, list[Label], np.ndarray]]:
    """Key, caption, labels of the V views and moments float32 (V, 2, C, h, w) of each photo.

    The views are its crops, each with its mirror image after it if `flip`.
    """
    starts = range(0, len(photos), params.batch_size)
    for start in progress(starts, desc="encode photos", unit="batch"):
        indices = range(start, min(start + params.batch_size, len(photos)))
        views: list[torch.Tensor] = []
        for crop in range(photos.num_crops):
            images = to_float(photos.images(indices, crop)).to(device)
            mirrored = [images.flip(-1)] if params.flip else []
            views += [torch.stack(vae.encode(view), 1) for view in (images, *mirrored)]
        moments = torch.stack(views, 1)  # (B, V, 2, C, h, w)
        for index, sample in zip(indices, moments.float().cpu().numpy(), strict=True):
            yield photos.keys[index], photos.captions[index], view_labels(photos.shifts(index), flip=params.flip), sample


def encode_captions(clip: ClipTowers, captions: list[str], batch_size: int, device: torch.device) -> Iterator[tuple[str, np.ndarray]]:
    """Each caption with its token embeddings float32 (L, D)."""
    for start in progress(range(0, len(captions), batch_size), desc="encode captions", unit="batch"):
        part = captions[start : start + batch_size]
        context = clip.encode_tokens(clip.tokenize(part).to(device)).float().cpu().numpy()
        yield from zip(part, context, strict=True)


def warn_of_cut_captions(clip: ClipTowers, captions: list[str]) -> None:
    lost = {caption: words for caption in captions if (words := clip.lost_words(caption))}
    if lost:
        caption, words = next(iter(lost.items()))
        logger.warning(
            "%d of %d captions are longer than the %d tokens of the text encoder and were cut; e.g. %r lost %r",
            len(lost), len(captions), clip.context_length, caption[:80], words[:80],
        )  # fmt: skip


STAGE = Contract("cache_latents", run, reads=("shards", "vae", "clip"), writes=("latents",))

if __name__ == "__main__":
    STAGE.main()
