"""cache_latents: everything the U-Net trains on, computed once.

Reads data/shards, data/vae, data/clip. Writes data/latents: of each photo the mean and standard deviation of its
posterior (not a sample, so that training still draws), mirrored too when `flip`; of each distinct caption, and of the
empty prompt, the token embeddings. Held-out photos are reconstructed first: a VAE that `gate` refuses costs no U-Net.
"""

import logging
from collections.abc import Iterator

import numpy as np
import torch

from darkroom.config import CacheLatentsParams, ReconstructionGate
from darkroom.data.latents import caption_key, write_captions, write_latents
from darkroom.data.shards import ImageShards
from darkroom.device import best_device, use_bf16
from darkroom.evaluation.distribution import frechet_distance
from darkroom.evaluation.features import clip_features
from darkroom.evaluation.reconstruction import psnr, shortfalls, ssim
from darkroom.models.autoencoder import AutoencoderKL
from darkroom.models.clip import ClipTowers
from darkroom.models.weights import load_model
from darkroom.pixels import map_pictures, to_float
from darkroom.progress import progress
from darkroom.stage import Contract, Stage

logger = logging.getLogger(__name__)

GATE_PHOTOS = 1024  # held-out photos that the gate looks at, at most


def run(stage: Stage[CacheLatentsParams]) -> None:
    params, out, device = stage.params, stage.outs["latents"], best_device()
    photos = {split: ImageShards(stage.inputs["shards"], split) for split in ("train", "val")}
    vae = load_model(AutoencoderKL, stage.inputs["vae"]).to(device).eval()
    towers = ClipTowers.load(stage.inputs["clip"]).to(device).eval()
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=use_bf16(params.precision, device)):
        measured = measure_reconstructions(vae, towers, photos["val"], params.batch_size, device)
        stage.tracker.log_metrics({f"held_out/{name}": value for name, value in measured.items()}, step=0)
        check_gate(measured, params.gate)
        splits = {
            split: write_latents(
                out, split=split, samples=encode_photos(vae, shards, params, device), samples_per_shard=params.samples_per_shard
            )
            for split, shards in photos.items()
        }
        captions = sorted({"", *photos["train"].captions, *photos["val"].captions})
        warn_of_lost_words(towers, captions)
        splits["captions"] = write_captions(
            out, encode_captions(towers, captions, params.batch_size, device), samples_per_shard=params.samples_per_shard
        )
    side = photos["train"].size // vae.config.stride
    stage.content["latents"] = {
        "splits": splits,
        "latent_shape": [vae.config.latent_channels, side, side],
        "context_shape": [towers.context_length, towers.context_dim],
        "empty_caption_key": caption_key(""),
        "flip": params.flip,
        "num_captions": len(captions) - 1,
        "reconstructions": measured,
    }


def measure_reconstructions(
    vae: AutoencoderKL, towers: ClipTowers, photos: ImageShards, batch_size: int, device: torch.device
) -> dict[str, float]:
    """Mean PSNR and SSIM of photos decoded from their posterior means, and the Fréchet distance of the two sets.

    The distance is measured in the features of the run's own CLIP, where that has an image tower and there are photos enough.
    """
    num = min(len(photos), GATE_PHOTOS)
    originals = photos.images(range(num))
    decoded = map_pictures(vae.reconstruct, originals, batch_size=batch_size, device=device)
    measured = {"psnr": float(psnr(originals, decoded).mean()), "ssim": float(ssim(originals, decoded).mean())}
    if not towers.has_image_tower or num < 2:
        why = "there is one held-out photo only" if towers.has_image_tower else "this CLIP has no image tower"
        logger.warning("The Fréchet distance of reconstructions is not measured: %s", why)
        return measured
    look = clip_features(towers.encode_images, "")
    of_photos = look(lambda rows: originals[rows], num, batch_size=batch_size, desc="held-out photos")
    of_decoded = look(lambda rows: decoded[rows], num, batch_size=batch_size, desc="their reconstructions")
    return measured | {"frechet": frechet_distance(of_photos, of_decoded)}


def check_gate(measured: dict[str, float], gate: ReconstructionGate) -> None:
    """
    Raises:
        ValueError: reconstructions are not as good as `gate` asks, or it asks for a distance that could not be measured.
    """
    if gate.max_frechet is not None and "frechet" not in measured:
        raise ValueError(
            f"cache_latents.gate.max_frechet is {gate.max_frechet}, but the Fréchet distance of reconstructions needs a CLIP with an image "
            "tower and two held-out photos at least. Set it to null; min_psnr and min_ssim go on asking."
        )
    found = shortfalls(measured, least={"psnr": gate.min_psnr, "ssim": gate.min_ssim}, most={"frechet": gate.max_frechet})
    if found:
        raise ValueError(
            f"The VAE is not good enough to train a U-Net on its latents. Of held-out reconstructions, {'; '.join(found)}. "
            "Look at data/vae/reconstructions.png; then train it longer (train_vae.steps, above 0 for one of train_vae.init too), give "
            "it more room (train_vae.model.latent_channels, block_out_channels), a smaller train_vae.decoder_scale, or, if there are "
            "few, more photos. If they are good enough for you, change cache_latents.gate; that does not train the VAE again."
        )


def encode_photos(
    vae: AutoencoderKL, photos: ImageShards, params: CacheLatentsParams, device: torch.device
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Key, caption and moments float32 (V, 2, C, h, w) of each photo; V is 2 with `flip` (plain, mirrored), else 1."""
    starts = range(0, len(photos), params.batch_size)
    for start in progress(starts, desc="encode photos", unit="batch"):
        indices = range(start, min(start + params.batch_size, len(photos)))
        images = to_float(photos.images(indices)).to(device)
        variants = [images, images.flip(-1)] if params.flip else [images]
        moments = torch.stack([torch.stack(vae.encode(variant), 1) for variant in variants], 1)  # (B, V, 2, C, h, w)
        for index, sample in zip(indices, moments.float().cpu().numpy(), strict=True):
            yield photos.keys[index], photos.captions[index], sample


def encode_captions(towers: ClipTowers, captions: list[str], batch_size: int, device: torch.device) -> Iterator[tuple[str, np.ndarray]]:
    """Each caption with its token embeddings float32 (L, D)."""
    for start in progress(range(0, len(captions), batch_size), desc="encode captions", unit="batch"):
        part = captions[start : start + batch_size]
        context = towers.encode_tokens(towers.tokenize(part).to(device)).float().cpu().numpy()
        yield from zip(part, context, strict=True)


def warn_of_lost_words(towers: ClipTowers, captions: list[str]) -> None:
    lost = {caption: words for caption in captions if (words := towers.lost_words(caption))}
    if lost:
        caption, words = next(iter(lost.items()))
        logger.warning(
            "%d of %d captions are longer than the %d tokens of the text tower and were cut; e.g. %r lost %r",
            len(lost), len(captions), towers.context_length, caption[:80], words[:80],
        )  # fmt: skip


STAGE = Contract("cache_latents", run, reads=("shards", "vae", "clip"), writes=("latents",))

if __name__ == "__main__":
    STAGE.main()
