"""The meaning of each metric in metrics.json, in plain sentences, in the order in which the report shows them.

A metric stands between two others: what real photos reach on the same measure (`<key>_photos`), and what a model reaches that has
learned nothing (`<key>_chance`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from darkroom.pages import format_number

Better = Literal["lower", "higher", "neither"]
COMPANIONS = ("standard_error", "low", "high", "p", "photos", "chance")  # `<key>_<companion>` in metrics.json
MEASURED = "measured"  # the companion is in metrics.json


@dataclass(frozen=True)
class Entry:
    """What is known of a metric before it is measured."""

    name: str
    meaning: str  # one plain sentence
    fooled_by: str  # one plain sentence: what makes it look better or worse than the model is
    better: Better
    photos: float | str = MEASURED  # what real photos reach, or a sentence why nobody knows
    chance: float | str = MEASURED  # what a model reaches that has learned nothing, or a sentence why nobody knows
    folded: bool = False  # shown in the report only when it is asked for


@dataclass(frozen=True)
class Metric:
    """A measured metric with its companions; None = not measured."""

    key: str  # in metrics.json
    value: float
    entry: Entry
    standard_error: float | None
    low: float | None  # of the 95 % interval
    high: float | None
    p: float | None  # probability of a value as large, or larger, if samples and photos were of one distribution
    photos: float | None
    chance: float | None

    @property
    def numbers(self) -> dict[str, float]:
        """The value and its companions under their names in metrics.json."""
        companions = {f"{self.key}_{name}": getattr(self, name) for name in COMPANIONS}
        return {self.key: self.value} | {key: value for key, value in companions.items() if value is not None}

    @property
    def in_words(self) -> str:
        """The value with its standard error, or else with its interval."""
        text = format_number(self.value)
        if self.standard_error is not None:
            error = self.standard_error
            return f"{text} ± {error:.0f}" if error >= 100 else f"{text} ± {error:#.2g}"
        limits = {"at least": self.low, "at most": self.high}
        known = {word: format_number(limit) for word, limit in limits.items() if limit is not None}
        if len(known) == 2:
            return f"{text} ({known['at least']} to {known['at most']})"
        return " ".join([text, *(f"({word} {limit})" for word, limit in known.items())])

    def place(self, value: float) -> float | None:
        """Where `value` stands between chance (0) and photos (1); None if one of both is unknown, or they are equal."""
        if self.chance is None or self.photos is None or self.chance == self.photos:
            return None
        return (value - self.chance) / (self.photos - self.chance)


CAPTION_CLIP = "The CLIP that measures it also conditioned the U-Net, and has seen nothing but your captions."
GLOSSARY: dict[str, Entry] = {
    "kid": Entry(
        "KID", "Distance of samples from held-out photos, unbiased for any number of them; 0 means no difference.",
        "An extractor that does not see a difference, which the canaries show; a model that copies its training photos.", "lower"),
    "frechet_distance": Entry(
        "Fréchet distance", "FID's formula in the features named below; larger for fewer images, so read it beside that of photos.",
        "The number of images: only distances of equally many compare, as those of samples and of photos here do.", "lower"),
    "precision": Entry(
        "Precision", "Share of samples that lie among the held-out photos: are they plausible?",
        "One outlier among the photos has a large ball; repeating one good image gives 1.", "higher"),
    "recall": Entry(
        "Recall", "Share of held-out photos that lie among the samples: does the model generate everything that the photos show?",
        "Scattered bad samples have large balls, which contain photos.", "higher"),
    "density": Entry(
        "Density", "How densely photos lie around the samples; less sensitive to outliers than precision.",
        "Samples in the middle of the photos, like blurred ones, lie in many balls.", "higher"),
    "coverage": Entry(
        "Coverage", "Share of held-out photos with a sample in their neighbourhood.",
        "Copies of training photos cover as well as new images.", "higher"),
    "copied_fraction": Entry(
        "Copied fraction", "Share of samples that are nearer to a training photo than fresh pictures come: 1 if copied.",
        "A copy of a part of a photo, or of two photos in one picture, is not found.", "lower", chance=0.0),
    "recognised": Entry(
        "Recognised", "Share of samples that a classifier puts into the classes that it gives to the photos: is the subject there?",
        "The texture of the subject without its shape: the classifier looks for fur rather than for a cat.", "higher"),
    "recognised_full": Entry(
        "Recognised at full size", "The same share of held-out photos at full size; what the working side loses, no model can learn.",
        "Photos with a small subject: their middle square may not show it.", "higher", photos="It is measured on photos."),
    "recognised_reconstructions": Entry(
        "Recognised reconstructions", "The same share of held-out photos after the VAE; what it loses, no sample can show.",
        "Sharp texture where the VAE was trained for it, in the wrong place.", "higher"),
    "clip_score": Entry(
        "CLIP score", "How well samples fit their prompts (100 times the cosine), by this run's own CLIP.", CAPTION_CLIP, "higher"),
    "retrieval_accuracy": Entry(
        "Retrieval accuracy", "Share of samples whose own prompt fits them best among all prompts; each prompt counts the same.",
        CAPTION_CLIP, "higher"),
    "reconstruction_psnr": Entry(
        "Reconstruction PSNR", "How exactly the VAE reconstructs held-out photos, in dB; no sample can be sharper than that.",
        "Blur costs little: it averages what the VAE does not know.", "higher",
        photos="A photo equals itself: there is no limit."),
    "reconstruction_ssim": Entry(
        "Reconstruction SSIM", "How much of the structure of held-out photos the VAE keeps.",
        "Flat regions count as much as the subject.", "higher", photos=1.0),
    "photo_bits_per_dim": Entry(
        "Bits per pixel value of photos", "Upper bound for a held-out photo, by VAE and U-Net.",
        "Most bits are noise and texture that no eye sees: a model with fewer bits can draw worse.", "lower",
        photos="Nobody knows the entropy of photos.", chance=8.0, folded=True),
    "vae_bits_per_dim": Entry(
        "Bits by the VAE alone", "The same bound with plain normal latents instead of the U-Net's; the U-Net saves the difference.",
        "A learned scale of the pixels that is finer than the levels of 8 bits.", "lower",
        photos="Nobody knows the entropy of photos.", chance=8.0, folded=True),
    "vae_elbo_nats": Entry(
        "Evidence lower bound of the VAE", "Lower bound on the log-likelihood of a held-out photo, in nats.",
        "It is the density of pixels in [-1, 1], so it grows with the side of the images.", "higher",
        photos="Nobody knows the entropy of photos.", chance="It depends on the number of pixels; see the bits.", folded=True),
    "latent_bits_total": Entry(
        "Bits per latent", "Upper bound for a value of normalised latents, by the U-Net.",
        "Another VAE: bits of other latents do not compare.", "lower",
        photos="Nobody knows the entropy of latents.", chance=0.5 * math.log2(2 * math.pi * math.e), folded=True),
    "latent_bits_prior": Entry(
        "Bits of the last step", "Their part L_T: what remains visible of a photo at the highest noise level.",
        "It says nothing of the U-Net: the schedule alone decides.", "lower", photos=0.0, chance="It is no measure of learning.",
        folded=True),
    "latent_bits_chain": Entry(
        "Bits of the chain", "Their part over all steps from noise to nearly clean: what the U-Net does not predict.",
        "Another schedule moves bits between the three parts.", "lower",
        photos="Nobody knows the entropy of latents.", chance="The three parts have one chance level, that of their sum.", folded=True),
    "latent_bits_decoder": Entry(
        "Bits of the first step", "Their part L_0: a density of the latents given nearly clean ones, so it is below 0.",
        "Another schedule moves bits between the three parts.", "lower",
        photos="Nobody knows the entropy of latents.", chance="The three parts have one chance level, that of their sum.", folded=True),
}  # fmt: skip


def explain(measured: Mapping[str, float], glossary: Mapping[str, Entry] = GLOSSARY) -> list[Metric]:
    """The finite ones of `measured` with their companions and entries, in the order of the glossary."""
    companions = {f"{key}_{companion}" for key in glossary for companion in COMPANIONS}
    assert set(measured) <= {*glossary, *companions}, f"{set(measured) - {*glossary, *companions}} without a sentence of meaning"
    return [_metric(key, entry, measured) for key, entry in glossary.items() if math.isfinite(measured.get(key, math.nan))]


def _metric(key: str, entry: Entry, measured: Mapping[str, float]) -> Metric:
    numbers = {companion: measured.get(f"{key}_{companion}", math.nan) for companion in COMPANIONS}
    found = {companion: number if math.isfinite(number) else None for companion, number in numbers.items()}
    constants = {"photos": entry.photos, "chance": entry.chance}
    found |= {companion: value for companion, value in constants.items() if isinstance(value, float)}
    return Metric(key, measured[key], entry, **found)
