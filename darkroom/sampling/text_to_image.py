"""A model (VAE, U-Net, text encoder) that draws from prompts, from images, and between prompts or seeds."""

import logging
from collections.abc import Iterable, Sequence, Sized
from itertools import repeat
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from darkroom.device import best_device
from darkroom.diffusion.denoiser import Denoise, make_denoiser
from darkroom.diffusion.diffusion_config import DiffusionConfig
from darkroom.diffusion.editing import ddim_invert, levels_of_strength, start
from darkroom.diffusion.guidance import classifier_free, clip_guidance
from darkroom.diffusion.samplers import SAMPLERS, NoiseAt
from darkroom.diffusion.schedule import noise_levels
from darkroom.models.autoencoder import Autoencoder
from darkroom.models.clip import ClipTowers
from darkroom.models.unet import UNet2DConditionModel
from darkroom.pixels import to_float, to_uint8
from darkroom.progress import progress
from darkroom.sampling.canvas import Canvas, pixel_mask
from darkroom.sampling.conditions import Conditions, SeededNoise, along, check_stops, no_noise
from darkroom.sampling.model_folder import ModelFolder
from darkroom.sampling.request import Options, Request

STRENGTH = 0.8  # of image-to-image, where the composition stays and the rest may change
logger = logging.getLogger(__name__)


class TextToImage:
    """Draws images. `Request` explains the options of all methods. An invalid call raises ValueError."""

    def __init__(
        self,
        *,
        vae: Autoencoder,
        unet: UNet2DConditionModel,
        clip: ClipTowers,
        config: DiffusionConfig,
        latent_shape: tuple[int, int, int],  # (C, h, w)
    ) -> None:
        self.vae = vae.eval()
        self.unet = unet.eval()
        self.clip = clip.eval()
        self.config = config
        self.latent_shape = latent_shape
        self._told = False  # that prompts steer nothing

    @classmethod
    def load(cls, folder: Path, device: torch.device | None = None) -> "TextToImage":
        """Loads a folder with clip/, vae/ and unet/ (e.g. data/); `open_model` also opens registered versions."""
        parts = ModelFolder(folder)
        vae, unet = parts.vae(), parts.unet()
        side = unet.config.sample_size
        assert side is not None, "train_unet writes it"
        device = device or best_device()
        return cls(
            vae=vae.to(device).requires_grad_(False),  # CLIP guidance asks for gradients, but not for theirs
            unet=unet.to(device).requires_grad_(False),
            clip=parts.clip().to(device).requires_grad_(False),
            config=parts.diffusion(),
            latent_shape=(unet.config.in_channels, side, side),
        )

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the training images, px: the default size."""
        stride = self.vae.config.stride
        return self.latent_shape[1] * stride, self.latent_shape[2] * stride

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int] | None = None,  # one per prompt; the image of a seed does not depend on the batch
        noise: Tensor | None = None,  # (B, C, h, w), for the first noise of the seeds: standard normal, or what `invert` found
        image: np.ndarray | None = None,  # uint8 (H, W, 3) or (B, H, W, 3) to begin with
        mask: np.ndarray | None = None,  # bool (H, W) or (B, H, W): True is repainted, the rest of `image` stays
        negative_prompts: Sequence[str] | None = None,  # one per prompt, instead of one for all
        **options: Unpack[Options],
    ) -> np.ndarray:
        """Draw one image per prompt, uint8 (B, H, W, 3)."""
        if image is None and options.get("strength") is not None:
            raise ValueError("strength needs an image to repaint: give `image` too.")
        if negative_prompts is not None and options.get("negative_prompt"):
            raise ValueError("Give negative_prompt, one for all, or negative_prompts, one per prompt; not both.")
        strength = STRENGTH if image is not None and mask is None else 1.0
        request = Request.make("sample", {**self.config.defaults, "strength": strength}, options)
        _check_lists(prompts=prompts, seeds=seeds, noise=noise, negative_prompts=negative_prompts)
        if seeds is None and noise is None:
            raise ValueError("Images are drawn from noise: give seeds, one per prompt, or noise.")
        canvas = self._canvas(len(prompts), request, image=image, mask=mask, noise=noise)
        negatives = [request.negative_prompt] * len(prompts) if negative_prompts is None else negative_prompts
        self._warn_of_texts([*prompts, *negatives])
        batches = (self._conditions(rows, prompts, negatives, seeds, canvas) for rows in request.batches(len(prompts)))
        return self._draw(batches, request, canvas, len(prompts))

    @torch.no_grad()
    def invert(
        self,
        image: np.ndarray,  # uint8 (H, W, 3) or (B, H, W, 3)
        prompts: Sequence[str],  # what the images show
        *,
        iterations: int = 3,  # network evaluations per step; more is more exact (see diffusion.editing.ddim_invert)
        **options: Unpack[Options],  # guidance is off by default: it makes the way back less exact
    ) -> Tensor:
        """DDIM inversion: the noise from which DDIM draws the images, (B, C, h, w), on the CPU.

        `sample(prompts, noise=..., sampler="ddim")` with the same options gives the VAE's reconstructions of the images; below strength 1
        it needs the same image too. With other prompts it edits the images.
        """
        request = Request.make("invert", {**self.config.defaults, "sampler": "ddim", "guidance_scale": 1.0}, options)
        sigmas = self._sigmas(request)
        if len(sigmas) == 1:
            raise ValueError("strength is 0; must be above 0 and at most 1, because at 0 no noise is added.")
        _check_lists(prompts=prompts)
        canvas = self._canvas(len(prompts), request, image=image)
        self._warn_of_texts([*prompts, request.negative_prompt])
        found = [torch.zeros(0, *canvas.latent_shape)]
        batches = request.batches(len(prompts))
        for rows in progress(batches, desc="invert", unit="batch") if request.show_progress else batches:
            batch = self._conditions(rows, prompts, [request.negative_prompt] * len(prompts), None, canvas)
            assert batch.known is not None
            x = ddim_invert(self._denoiser(batch, request), batch.known, sigmas, iterations=iterations)
            begun = start(batch.noise, sigmas[0], batch.known, strength=request.strength)  # of no noise at all
            found.append(((x - begun) / sigmas[0]).cpu())
        return torch.cat(found)

    def edit(
        self,
        image: np.ndarray,  # uint8 (H, W, 3)
        prompt: str,  # what the image shows, in words that the model knows
        edits: Sequence[str],  # what to show instead
        *,
        iterations: int = 3,  # of `invert`
        **options: Unpack[Options],
    ) -> np.ndarray:
        """Redraw the image under other prompts, uint8 (B, H, W, 3): DDIM inversion under its own prompt, then DDIM from that noise.

        The own prompt is the negative prompt, so guidance leads from the content of the image to the new content.
        """
        ddim: Options = {"sampler": "ddim", "strength": Request.make("edit", self.config.defaults, options).strength}
        unguided: Options = {"guidance_scale": 1.0, "clip_guidance_scale": 0.0}
        _check_lists(edits=edits)
        noise = self.invert(image, [prompt], iterations=iterations, **(options | unguided)).expand(len(edits), -1, -1, -1)
        return self.sample(edits, noise=noise, image=image, negative_prompts=[prompt] * len(edits), **(options | ddim))

    @torch.no_grad()
    def interpolate(
        self,
        prompts: Sequence[str],  # the stops on the way, or one for all of it
        *,
        seeds: Sequence[int],  # likewise
        num: int,  # of images, the first and the last stop among them
        **options: Unpack[Options],
    ) -> np.ndarray:
        """Draw images between prompts and seeds, uint8 (num, H, W, 3): contexts change on lines, noises on arcs."""
        request = Request.make("interpolate", self.config.defaults, options)
        _check_lists(prompts=prompts)
        check_stops(len(prompts), len(seeds), num)
        canvas = self._canvas(num, request)
        self._warn_of_texts([*prompts, request.negative_prompt])
        noises = SeededNoise(seeds, canvas.latent_shape, self.device)()
        contexts, noises = along(self._encode(prompts), noises, num)
        negative = self._encode([request.negative_prompt])
        batches = (
            Conditions(context=contexts[rows], negative_context=negative, tokens=None, noise=noises[rows], noise_at=no_noise)
            for rows in request.batches(num)
        )
        return self._draw(batches, request, canvas, num)

    # ---- from words and images to tensors

    def _canvas(self, num: int, request: Request, **given: Any) -> Canvas:
        return Canvas.prepare(num, self.latent_shape, self.vae.config.stride, size=request.size, **given)

    def _sigmas(self, request: Request) -> Tensor:
        return levels_of_strength(noise_levels(self.config.schedule, request.steps, request.spacing), request.strength)

    def _warn_of_texts(self, texts: Sequence[str]) -> None:
        """Of words that the text encoder does not read, and once if the U-Net knows one caption only."""
        only = self.config.only_caption
        if only is not None and not self._told and any(text not in ("", only) for text in texts):
            self._told = True
            logger.warning("This model was trained with one caption, `%s`, so prompts steer nothing: all are drawn as this one.", only)
        for text in dict.fromkeys(texts):
            if lost := self.clip.lost_words(text):
                logger.warning("Prompt `%s` is too long for the text encoder, which ignores `%s`.", text, lost)

    def _encode(self, texts: Sequence[str]) -> Tensor:
        """(B, L, D); of the only caption if the U-Net knows no other: it would draw worse from embeddings that it has never seen."""
        only = self.config.only_caption
        texts = texts if only is None else [only] * len(texts)
        return self.clip.encode_tokens(self.clip.tokenize(list(texts)).to(self.device))

    def _conditions(
        self, rows: slice, prompts: Sequence[str], negatives: Sequence[str], seeds: Sequence[int] | None, canvas: Canvas
    ) -> Conditions:
        noise_at: NoiseAt = no_noise if seeds is None else SeededNoise(seeds[rows], canvas.latent_shape, self.device)
        noise = torch.zeros(len(prompts[rows]), *canvas.latent_shape) if seeds is None else noise_at(0)
        if canvas.noise is not None:
            noise = canvas.noise[rows]
        known, mask = self._known(canvas, rows), canvas.latent_mask(rows)
        tokens = self.clip.tokenize(list(prompts[rows])).to(self.device)
        return Conditions(
            context=self._encode(prompts[rows]),
            negative_context=self._encode(negatives[rows]),
            tokens=tokens,
            noise=noise.to(self.device),
            noise_at=noise_at,
            known=known,
            mask=None if mask is None else mask.to(self.device),
            kept=None if mask is None or known is None else self.vae.decode(self.vae.denormalise(known)),
        )

    def _known(self, canvas: Canvas, rows: slice) -> Tensor | None:
        """The images on the canvas as normalised latents (B, C, h, w): the means of the posteriors."""
        if canvas.images is None:
            return None
        return self.vae.normalise(self.vae.encode(to_float(np.array(canvas.images[rows])).to(self.device))[0])

    # ---- from tensors to images

    def _denoiser(self, batch: Conditions, request: Request) -> Denoise:
        """D(x, sigma) of the U-Net with all the guidance of the request."""
        scale = request.guidance_scale if self.config.only_caption is None else 1.0  # between two equal predictions
        guidance = scale, request.guidance_rescale, request.guidance_interval
        net = classifier_free(self.unet, batch.context, batch.negative_context, *guidance)
        denoise = make_denoiser(net, self.config.schedule, self.config.prediction, self.config.spread)
        if not request.clip_guidance_scale:
            return denoise
        if not self.clip.has_image_encoder:
            raise ValueError("clip_guidance_scale needs a CLIP with an image encoder; this model has a text encoder only. Set it to 0.")

        def similarity(latents: Tensor) -> Tensor:
            """The cosine of decoded images with their prompts, in the features of the model's own CLIP."""
            image_features, text_features, _ = self.clip(self.vae.decode(self.vae.denormalise(latents)), batch.tokens)
            return (image_features * text_features).sum(1)

        return clip_guidance(denoise, similarity, request.clip_guidance_scale)

    def _draw(self, batches: Iterable[Conditions], request: Request, canvas: Canvas, num: int) -> np.ndarray:
        sigmas = self._sigmas(request)
        total = (len(sigmas) - 1) * len(request.batches(num))
        ticks = progress(range(total), desc="draw", unit="step") if request.show_progress else repeat(None)
        images = [np.empty((0, *canvas.size, 3), np.uint8)]
        for batch in batches:
            latents = batch.draw(self._denoiser(batch, request), SAMPLERS[request.sampler], sigmas, request.strength, ticks)
            drawn = self.vae.decode(self.vae.denormalise(latents.float()))
            if batch.mask is not None and batch.kept is not None:
                drawn = torch.lerp(batch.kept, drawn, pixel_mask(batch.mask, self.vae.config.stride))
            images.append(to_uint8(drawn))
        next(ticks, None)
        return np.concatenate(images)


def _check_lists(**lists: Sized | None) -> None:
    """Raise ValueError for a text instead of a list (its letters would be prompts), or for a list of another length than the first."""
    (first, prompts), *_ = lists.items()
    assert prompts is not None
    for name, items in lists.items():
        if isinstance(items, str):
            raise ValueError(f"{name} is the text {items[:40]!r}; must be a list of texts, one per image.")
        if items is not None and len(items) != len(prompts):
            raise ValueError(f"{len(prompts)} {first} but {len(items)} {name}: give one per prompt.")
