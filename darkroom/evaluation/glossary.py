"""The meaning of each metric in metrics.json, in one plain sentence, in the order in which the report shows them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    key: str  # in metrics.json
    value: float
    name: str
    meaning: str  # one plain sentence


GLOSSARY: dict[str, tuple[str, str]] = {  # key in metrics.json -> name, meaning
    "kid": (
        "KID", "Distance of samples from held-out photos, unbiased for any number of them; 0 means no difference, smaller is better."),
    "kid_standard_error": (
        "Standard error of KID", "KIDs closer than two or three standard errors do not differ; it falls with more samples and photos."),
    "frechet_distance": (
        "Fréchet distance", "FID's formula in the features named below. It is larger for fewer images: compare it only with its floor."),
    "frechet_distance_floor": (
        "Floor of the Fréchet distance", "The same between two sets of training photos of these sizes: what a perfect model reaches."),
    "precision": (
        "Precision", "Share of samples that lie among the held-out photos: are they plausible?"),
    "recall": (
        "Recall", "Share of held-out photos that lie among the samples: does the model generate everything that the photos show?"),
    "density": (
        "Density", "How densely photos lie around the samples; near 1 for a perfect model, and less sensitive to outliers than precision."),
    "coverage": (
        "Coverage", "Share of held-out photos with a sample in their neighbourhood; near 1 for a perfect model."),
    "copied_fraction": (
        "Copied fraction", "Share of samples closer to a training photo than the median held-out photo is: 0.5 if new, 1 if copied."),
    "clip_score": (
        "CLIP score", "How well samples fit their prompts (100 times the cosine), by this run's own CLIP."),
    "clip_score_photos": (
        "CLIP score of photos", "The CLIP score of held-out photos with their own captions: the value to aim at."),
    "clip_score_chance": (
        "CLIP score by chance", "The CLIP score of samples with the prompts of others: what a model that ignores its prompts reaches."),
    "retrieval_accuracy": (
        "Retrieval accuracy", "Share of samples whose own prompt fits them best among all prompts."),
    "retrieval_accuracy_photos": (
        "Retrieval accuracy of photos", "Share of held-out photos whose own caption fits them best among all captions."),
    "reconstruction_psnr": (
        "Reconstruction PSNR", "How exactly the VAE reconstructs held-out photos, in dB; no sample can be sharper than that."),
    "reconstruction_ssim": (
        "Reconstruction SSIM", "How much of the structure of held-out photos the VAE keeps; 1 is all of it."),
    "photo_bits_per_dim": (
        "Bits per pixel value of photos", "Upper bound for a held-out photo, by VAE and U-Net; a model that knows nothing has 8."),
    "photo_bits_per_dim_standard_error": (
        "Standard error of these bits", "It shows how well these photos stand for others; a comparison on the same photos is more exact."),
    "vae_bits_per_dim": (
        "Bits by the VAE alone", "The same bound with plain normal latents instead of the U-Net's; the U-Net saves the difference."),
    "vae_elbo_nats": (
        "Evidence lower bound of the VAE", "Lower bound on the log-likelihood of a held-out photo, in nats; larger is better."),
    "latent_bits_total": (
        "Bits per latent", "Upper bound for a value of normalised latents, by the U-Net; plain normal noise has 2.05, less is better."),
    "latent_bits_prior": (
        "Bits of the last step", "Their part L_T: what remains visible of a photo at the highest noise level; should be near 0."),
    "latent_bits_chain": (
        "Bits of the chain", "Their part over all steps from noise to nearly clean: what the U-Net does not predict."),
    "latent_bits_decoder": (
        "Bits of the first step", "Their part L_0: a density of the latents given nearly clean ones, so it is below 0."),
}  # fmt: skip


def explain(metrics: Mapping[str, float], glossary: Mapping[str, tuple[str, str]] = GLOSSARY) -> list[Metric]:
    """The finite ones of `metrics` with their names and meanings, in the order of the glossary."""
    assert set(metrics) <= set(glossary), f"{set(metrics) - set(glossary)} without a sentence of meaning"
    return [
        Metric(key, metrics[key], name, meaning) for key, (name, meaning) in glossary.items() if math.isfinite(metrics.get(key, math.nan))
    ]
