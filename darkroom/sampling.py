"""From prompts to pictures: the one way that evaluation, the command line and the served model draw."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from darkroom.device import best_device
from darkroom.diffusion.denoiser import make_denoiser
from darkroom.diffusion.grids import sigma_grid
from darkroom.diffusion.guidance import classifier_free
from darkroom.diffusion.samplers import SAMPLERS
from darkroom.diffusion.schedule import Schedule
from darkroom.models.autoencoder import AutoencoderKL
from darkroom.models.clip import ClipTowers
from darkroom.models.unet import UNet2DConditionModel
from darkroom.models.weights import load_model
from darkroom.pixels import to_uint8
from darkroom.progress import progress
from darkroom.provenance import INDEX, check_lineage, read_index, write_json

DIFFUSION = "diffusion.json"


@dataclass(frozen=True)
class DiffusionConfig:
    """What a U-Net must be sampled with; lies beside its weights."""

    schedule: Schedule
    prediction: str  # epsilon or v_prediction
    sampler: str  # these three are defaults
    steps: int
    guidance_scale: float
    spacing: str = "trailing"  # of the noise levels, a name in diffusion.grids.SPACINGS

    def save(self, folder: Path) -> None:
        schedule_keys = ("kind", "num_train_timesteps", "beta_start", "beta_end", "zero_terminal_snr")
        schedule = {key: getattr(self.schedule, key) for key in schedule_keys}
        rest = {key: getattr(self, key) for key in ("prediction", "sampler", "steps", "guidance_scale", "spacing")}
        write_json(folder / DIFFUSION, {"schedule": schedule, **rest})

    @classmethod
    def load(cls, folder: Path) -> "DiffusionConfig":
        if not (folder / DIFFUSION).is_file():
            raise ValueError(f"{folder} has no {DIFFUSION}: it is not the folder of a U-Net that train_unet wrote.")
        content = json.loads((folder / DIFFUSION).read_text(encoding="utf-8"))
        return cls(schedule=Schedule.make(**content.pop("schedule")), **content)


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
        folder = Path(source)
        parts = {name: folder / name for name in ("clip", "vae", "unet")}
        if missing := [name for name, part in parts.items() if not part.is_dir()]:
            raise ValueError(
                f"{folder} has no folder {missing[0]}/: a model is a folder with clip/, vae/ and unet/ (data/ after `dvc repro`)."
            )
        check_lineage({name: read_index(part) for name, part in parts.items() if (part / INDEX).is_file()})
        vae = load_model(AutoencoderKL, parts["vae"])
        unet = load_model(UNet2DConditionModel, parts["unet"])
        side = unet.config.sample_size
        assert side is not None, "train_unet writes it"
        device = device or best_device()
        return cls(
            vae=vae.to(device),
            unet=unet.to(device),
            clip=ClipTowers.load(parts["clip"]).to(device),
            config=DiffusionConfig.load(parts["unet"]),
            latent_shape=(unet.config.in_channels, side, side),
        )

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],  # one a prompt; the picture of a seed does not depend on the batch
        steps: int | None = None,  # network evaluations (heun: about twice as many); None = the model's default
        sampler: str | None = None,  # a name in diffusion.samplers.SAMPLERS
        spacing: str | None = None,  # a name in diffusion.grids.SPACINGS
        guidance_scale: float | None = None,  # 1 = off
        negative_prompts: Sequence[str] | None = None,  # what guidance leads away from; default the empty prompt
        noise: Tensor | None = None,  # (B, C, h, w) standard normal, instead of the seeds'
        batch_size: int = 32,
        show_progress: bool = False,
    ) -> np.ndarray:
        """Draws one picture a prompt.

        Returns:
            uint8 (B, H, W, 3).

        Raises:
            ValueError: lists of different lengths, an unknown sampler, steps below 1.
        """
        prompts = list(prompts)
        negatives = list(negative_prompts) if negative_prompts is not None else [""] * len(prompts)
        for name, items in {"seeds": seeds, "negative_prompts": negatives, "noise": prompts if noise is None else noise}.items():
            if len(items) != len(prompts):
                raise ValueError(f"{len(prompts)} prompts but {len(items)} {name}: give one a prompt.")
        chosen = sampler or self.config.sampler
        if chosen not in SAMPLERS:
            raise ValueError(f"There is no sampler {chosen!r}; there are {', '.join(sorted(SAMPLERS))}.")
        steps = self.config.steps if steps is None else steps
        if steps < 1:
            raise ValueError(f"steps is {steps}; at least 1 is needed.")
        scale = self.config.guidance_scale if guidance_scale is None else guidance_scale
        sigmas = sigma_grid(self.config.schedule, steps, spacing or self.config.spacing)
        starts = range(0, len(prompts), batch_size)
        pictures = [
            self._sample_batch(
                prompts[start : start + batch_size],
                negatives[start : start + batch_size],
                list(seeds[start : start + batch_size]),
                None if noise is None else noise[start : start + batch_size],
                sigmas,
                chosen,
                scale,
            )
            for start in (progress(starts, desc="draw", unit="batch") if show_progress else starts)
        ]
        side = self.latent_shape[1] * self.vae.config.stride
        return np.concatenate(pictures) if pictures else np.empty((0, side, side, 3), np.uint8)

    def _sample_batch(
        self,
        prompts: list[str],
        negatives: list[str],
        seeds: list[int],
        noise: Tensor | None,
        sigmas: Tensor,
        sampler: str,
        guidance_scale: float,
    ) -> np.ndarray:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]

        def draw() -> Tensor:
            return torch.stack([torch.randn(self.latent_shape, generator=generator) for generator in generators]).to(self.device)

        context = self.clip.encode_tokens(self.clip.tokenize(prompts).to(self.device))  # (B, L, D)
        negative_context = self.clip.encode_tokens(self.clip.tokenize(negatives).to(self.device))
        net = classifier_free(self.unet, context, negative_context, guidance_scale)
        denoise = make_denoiser(net, self.config.schedule, self.config.prediction)
        x = (draw() if noise is None else noise.to(self.device)) * sigmas[0]
        for step in SAMPLERS[sampler](denoise, x, sigmas, noise_at=lambda _: draw()):
            x = step.x
        return to_uint8(self.vae.decode(self.vae.denormalise(x.float())))
