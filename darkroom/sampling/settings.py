"""How pictures are drawn: what was asked for, the model's defaults for the rest, all of it checked before any network runs."""

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import Self, TypedDict

from torch import Tensor

from darkroom.diffusion.config import DiffusionConfig
from darkroom.diffusion.editing import levels_of_strength
from darkroom.diffusion.samplers import SAMPLERS, Sampler
from darkroom.diffusion.schedule import noise_levels

ONE_AT_A_TIME = ("ode_adaptive",)  # its work for a batch grows with the square of the batch


class Options(TypedDict, total=False):
    """What `TextToImage.sample` and `TextToImage.interpolate` both take; None = the model's default."""

    steps: int | None
    sampler: str | None
    spacing: str | None
    guidance_scale: float | None
    guidance_rescale: float
    guidance_interval: tuple[float, float] | None
    batch_size: int


@dataclass(frozen=True, kw_only=True)
class Settings:
    sampler: Sampler
    sigmas: Tensor  # what is left of the grid at this strength
    guidance_scale: float
    guidance_rescale: float
    guidance_interval: tuple[float, float] | None
    clip_guidance_scale: float
    strength: float
    batch_size: int

    @classmethod
    def resolve(
        cls,
        config: DiffusionConfig,
        *,
        steps: int | None = None,
        sampler: str | None = None,
        spacing: str | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float = 0.0,
        guidance_interval: tuple[float, float] | None = None,
        clip_guidance_scale: float = 0.0,
        strength: float = 1.0,
        batch_size: int = 32,
    ) -> Self:
        """
        Raises:
            ValueError: an unknown sampler or spacing, steps or batch_size below 1, strength outside 0 to 1.
        """
        name = config.sampler if sampler is None else sampler
        if name not in SAMPLERS:
            raise ValueError(f"There is no sampler {name!r}; there are {', '.join(sorted(SAMPLERS))}.")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; at least 1 is needed.")
        grid = noise_levels(config.schedule, config.steps if steps is None else steps, config.spacing if spacing is None else spacing)
        return cls(
            sampler=SAMPLERS[name],
            sigmas=levels_of_strength(grid, strength),
            guidance_scale=config.guidance_scale if guidance_scale is None else guidance_scale,
            guidance_rescale=guidance_rescale,
            guidance_interval=guidance_interval,
            clip_guidance_scale=clip_guidance_scale,
            strength=strength,
            batch_size=1 if name in ONE_AT_A_TIME else batch_size,
        )

    @property
    def num_steps(self) -> int:
        return len(self.sigmas) - 1

    def batches(self, num: int) -> Sequence[slice]:
        return [slice(start, start + self.batch_size) for start in range(0, num, self.batch_size)]


def check_one_each(prompts: Sequence[str], **lists: Sized | None) -> None:
    """
    Raises:
        ValueError: `seeds`, `noise` or another list that is not as long as that of the prompts, or neither seeds nor noise.
    """
    check_texts(prompts=prompts, **lists)
    for name, items in lists.items():
        if items is not None and len(items) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts but {len(items)} {name}: give one a prompt.")
    if lists["seeds"] is None and lists["noise"] is None:
        raise ValueError("Pictures are drawn from noise: give seeds, one a prompt, or noise.")


def check_texts(**lists: Sized | None) -> None:
    """
    Raises:
        ValueError: one text where a list is taken; its letters would be drawn.
    """
    for name, items in lists.items():
        if isinstance(items, str):
            raise ValueError(f"{name} is the text {items[:40]!r}; give a list of texts, one a picture.")
