"""A VAE, a U-Net and a text tower that draw together: from prompts, from pictures, from one seed to the next."""

import logging
from collections.abc import Iterable, Sequence
from itertools import repeat
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from torch import Tensor

from darkroom.device import best_device
from darkroom.diffusion.config import DiffusionConfig
from darkroom.diffusion.denoiser import Denoise
from darkroom.diffusion.editing import ddim_invert, start
from darkroom.diffusion.samplers import NoiseAt
from darkroom.models.autoencoder import AutoencoderKL
from darkroom.models.clip import ClipTowers
from darkroom.models.unet import UNet2DConditionModel
from darkroom.pixels import to_float, to_uint8
from darkroom.progress import progress
from darkroom.sampling.batch import Batch, draw
from darkroom.sampling.canvas import Canvas, Given, pixel_mask, resolve_strength
from darkroom.sampling.guided import guided_denoiser
from darkroom.sampling.model_folder import ModelFolder
from darkroom.sampling.noise import SeededNoise, no_noise
from darkroom.sampling.path import along, check_stops
from darkroom.sampling.settings import Options, Settings, check_one_each, check_texts

logger = logging.getLogger(__name__)


class TextToImage:
    """A VAE, a U-Net and a text tower that draw together."""

    def __init__(
        self,
        *,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        clip: ClipTowers,
        config: DiffusionConfig,
        latent_shape: tuple[int, int, int],
    ) -> None:
        self.vae = vae.eval()
        self.unet = unet.eval()
        self.clip = clip.eval()
        self.config = config
        self.latent_shape = latent_shape  # (C, h, w)

    @classmethod
    def load(cls, source: str | Path, device: torch.device | None = None) -> "TextToImage":
        """Loads a folder that holds clip/, vae/ and unet/ (as data/ does), or `models:/NAME@ALIAS` from the MLflow registry.

        Raises:
            ValueError: a part is missing or damaged, or the parts are of different runs.
        """
        if str(source).startswith("models:/"):
            from darkroom.tracking.registry import download

            source = download(str(source))
        folder = ModelFolder(Path(source))
        vae, unet = folder.vae(), folder.unet()
        side = unet.config.sample_size
        assert side is not None, "train_unet writes it"
        device = device or best_device()
        return cls(
            vae=vae.to(device).requires_grad_(False),  # CLIP guidance asks for gradients, but not for theirs
            unet=unet.to(device).requires_grad_(False),
            clip=folder.clip().to(device).requires_grad_(False),
            config=folder.diffusion(),
            latent_shape=(unet.config.in_channels, side, side),
        )

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the training pictures, px: what is drawn if nothing else is asked for."""
        stride = self.vae.config.stride
        return self.latent_shape[1] * stride, self.latent_shape[2] * stride

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int] | None = None,  # one a prompt; the picture of a seed does not depend on the batch
        noise: Tensor | None = None,  # (B, C, h, w) to begin with instead of the seeds': standard normal, or what `invert` found
        image: np.ndarray | None = None,  # uint8 (H, W, 3) or (B, H, W, 3) to begin with
        mask: np.ndarray | None = None,  # bool (H, W) or (B, H, W): True is drawn anew, the rest of `image` stays
        strength: float | None = None,  # 0 = `image` as the VAE has it, 1 = nothing of it; default 0.8, with a mask 1
        size: tuple[int, int] | None = None,  # height and width, px; default that of `image`, or of the training pictures
        steps: int | None = None,  # network evaluations (heun: about twice as many); None = the model's default
        sampler: str | None = None,  # a name in diffusion.samplers.SAMPLERS
        spacing: str | None = None,  # a name in diffusion.schedule.SPACINGS
        guidance_scale: float | None = None,  # 1 = off
        guidance_rescale: float = 0.0,  # 0 to 1, against overexposed pictures
        guidance_interval: tuple[float, float] | None = None,  # from and to which timestep; all others see the prompt alone
        clip_guidance_scale: float = 0.0,  # how much the run's own CLIP leads towards its prompt; 10 shows, 100 may be too much
        negative_prompts: Sequence[str] | None = None,  # what guidance leads away from; default the empty prompt
        batch_size: int = 32,
        show_progress: bool = False,
    ) -> np.ndarray:
        """Draws one picture a prompt.

        Returns:
            uint8 (B, H, W, 3).

        Raises:
            ValueError: lists of different lengths, an unknown sampler or spacing, a number out of range, an image, a mask or noise of
                another shape, a size that the VAE's stride does not divide, CLIP guidance without CLIP's image tower.
        """
        check_one_each(prompts, seeds=seeds, noise=noise, negative_prompts=negative_prompts)
        prompts = list(prompts)
        negatives = [""] * len(prompts) if negative_prompts is None else list(negative_prompts)
        settings = Settings.resolve(
            self.config,
            steps=steps,
            sampler=sampler,
            spacing=spacing,
            guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale,
            guidance_interval=guidance_interval,
            strength=resolve_strength(strength, image, mask),
            clip_guidance_scale=clip_guidance_scale,
            batch_size=batch_size,
        )
        canvas = self._canvas(len(prompts), size=size, image=image, mask=mask, noise=noise)
        self._warn_of_lost_words([*prompts, *negatives])
        batches = (self._batch(rows, prompts, negatives, seeds, noise, canvas) for rows in settings.batches(len(prompts)))
        return self._draw(batches, settings, canvas, num=len(prompts), show_progress=show_progress)

    @torch.no_grad()
    def invert(
        self,
        image: np.ndarray,  # uint8 (H, W, 3) or (B, H, W, 3)
        prompts: Sequence[str],  # what the pictures show
        *,
        strength: float = 1.0,  # how far up the grid; give `sample` the same
        steps: int | None = None,  # None = the model's default
        spacing: str | None = None,
        guidance_scale: float = 1.0,  # more makes the way back less exact
        iterations: int = 3,  # network evaluations a step; more is more exact (see diffusion.editing.ddim_invert)
        batch_size: int = 32,
        show_progress: bool = False,
    ) -> Tensor:
        """The noise that DDIM draws pictures from, given what they show: under another prompt it draws them edited.

        `sample(prompts, noise=..., sampler="ddim")` with the same steps, spacing and guidance scale gives the pictures back, as the VAE
        has them; below strength 1 it needs the same image and strength too.

        Returns:
            (B, C, h, w), on the CPU.

        Raises:
            ValueError: as `sample`; strength 0, where there is no noise to find.
        """
        settings = Settings.resolve(
            self.config,
            sampler="ddim",
            steps=steps,
            spacing=spacing,
            guidance_scale=guidance_scale,
            strength=strength,
            batch_size=batch_size,
        )
        if not settings.num_steps:
            raise ValueError("strength is 0: there is no noise to find. It should be above 0, and at most 1.")
        check_texts(prompts=prompts)
        prompts = list(prompts)
        canvas = self._canvas(len(prompts), image=image)
        self._warn_of_lost_words(prompts)
        zeros = torch.zeros(len(prompts), *canvas.latent_shape)
        found = [zeros[:0]]
        rows_of = settings.batches(len(prompts))
        for rows in progress(rows_of, desc="invert", unit="batch") if show_progress else rows_of:
            batch = self._batch(rows, prompts, [""] * len(prompts), None, zeros, canvas)
            assert batch.known is not None
            x = ddim_invert(self._denoiser(batch, settings), batch.known, settings.sigmas, iterations=iterations)
            begun = start(batch.noise, settings.sigmas[0], batch.known, strength=strength)  # of no noise at all
            found.append(((x - begun) / settings.sigmas[0]).cpu())
        return torch.cat(found)

    @torch.no_grad()
    def interpolate(
        self,
        prompts: Sequence[str],  # the stops on the way, or one for all of it
        *,
        seeds: Sequence[int],  # likewise
        num: int,  # pictures, the first and the last stop among them
        negative_prompt: str = "",
        size: tuple[int, int] | None = None,  # as those of `sample`
        show_progress: bool = False,
        **options: Unpack[Options],
    ) -> np.ndarray:
        """Draws pictures on the way from one prompt and seed to the next: contexts mixed evenly, noises along the arc between them.

        Returns:
            uint8 (num, H, W, 3); `sample` draws the same pictures at the stops.

        Raises:
            ValueError: as `sample`; fewer than two stops or pictures, or a sampler that draws fresh noise.
        """
        check_texts(prompts=prompts)
        check_stops(len(prompts), len(seeds), num)
        settings = Settings.resolve(self.config, **options)
        canvas = self._canvas(num, size=size)
        self._warn_of_lost_words([*prompts, negative_prompt])
        noises = SeededNoise(seeds, canvas.latent_shape, self.device)()
        contexts, noises = along(self._encode(prompts), noises, num)
        negative = self._encode([negative_prompt])
        batches = (
            Batch(context=contexts[rows], negative_context=negative, tokens=None, noise=noises[rows], noise_at=no_noise)
            for rows in settings.batches(num)
        )
        return self._draw(batches, settings, canvas, num=num, show_progress=show_progress)

    # ---- from words and pictures to tensors

    def _canvas(self, num: int, **given: Unpack[Given]) -> Canvas:
        return Canvas.prepare(num, self.latent_shape, self.vae.config.stride, **given)

    def _warn_of_lost_words(self, texts: Sequence[str]) -> None:
        for text in dict.fromkeys(texts):
            if lost := self.clip.lost_words(text):
                logger.warning("The prompt `%s` is too long for the text tower: it does not see `%s`.", text, lost)

    def _encode(self, texts: Sequence[str]) -> Tensor:
        """(B, L, D)"""
        return self.clip.encode_tokens(self.clip.tokenize(texts).to(self.device))

    def _batch(
        self, rows: slice, prompts: list[str], negatives: list[str], seeds: Sequence[int] | None, noise: Tensor | None, canvas: Canvas
    ) -> Batch:
        tokens = self.clip.tokenize(prompts[rows]).to(self.device)
        begin: Tensor | None = None
        noise_at: NoiseAt = no_noise
        if seeds is not None:
            noise_at = SeededNoise(seeds[rows], canvas.latent_shape, self.device)
            begin = noise_at(0)
        if noise is not None:
            begin = noise[rows].to(self.device)
        assert begin is not None, "seeds or noise: it is checked"
        known, mask = self._known(canvas, rows), canvas.latent_mask(rows)
        return Batch(
            context=self.clip.encode_tokens(tokens),
            negative_context=self._encode(negatives[rows]),
            tokens=tokens,
            noise=begin,
            noise_at=noise_at,
            known=known,
            mask=None if mask is None else mask.to(self.device),
            kept=None if mask is None or known is None else self.vae.decode(self.vae.denormalise(known)),
        )

    def _known(self, canvas: Canvas, rows: slice) -> Tensor | None:
        """What is on the canvas, as normalised latents (B, C, h, w): the means of the VAE's posteriors."""
        if canvas.images is None:
            return None
        images = to_float(np.array(canvas.images[rows])).to(self.device)
        return self.vae.normalise(self.vae.encode(images)[0])

    # ---- from tensors to pictures

    def _denoiser(self, batch: Batch, settings: Settings) -> Denoise:
        return guided_denoiser(batch, settings, self.config, unet=self.unet, vae=self.vae, clip=self.clip)

    def _draw(self, batches: Iterable[Batch], settings: Settings, canvas: Canvas, *, num: int, show_progress: bool) -> np.ndarray:
        total = settings.num_steps * len(settings.batches(num))
        ticks = progress(range(total), desc="draw", unit="step") if show_progress else repeat(None)
        pictures = [np.empty((0, canvas.height, canvas.width, 3), np.uint8)]
        for batch in batches:
            latents = draw(self._denoiser(batch, settings), batch, settings, ticks)
            drawn = self.vae.decode(self.vae.denormalise(latents.float()))
            if batch.mask is not None and batch.kept is not None:
                drawn = torch.lerp(batch.kept, drawn, pixel_mask(batch.mask, self.vae.config.stride))
            pictures.append(to_uint8(drawn))
        next(ticks, None)
        return np.concatenate(pictures)
