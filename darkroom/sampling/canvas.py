"""The canvas of a drawing: its size, the image to start from, and the mask."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Canvas:
    size: tuple[int, int]  # height and width, px
    latent_shape: tuple[int, int, int]  # (C, h, w)
    images: np.ndarray | None  # uint8 (B, H, W, 3)
    mask: np.ndarray | None  # bool (B, H, W), True = repainted
    noise: Tensor | None  # (B, C, h, w)

    @classmethod
    def prepare(
        cls,
        num: int,
        trained_shape: tuple[int, int, int],  # (C, h, w) of the training latents, if nothing says another size
        stride: int,  # px per latent pixel
        *,
        size: tuple[int, int] | None,
        image: np.ndarray | None = None,
        mask: np.ndarray | None = None,
        noise: Tensor | None = None,
    ) -> Self:
        """A canvas for `num` images; one image or mask serves all. Raises ValueError for wrong types, shapes and sizes."""
        channels, h, w = trained_shape
        if image is not None:
            image = _one_each(image, num, name="image", dtype=np.uint8, channels=(3,))
            if size is not None and tuple(size) != image.shape[1:3]:
                raise ValueError(f"image is {_px(image.shape[1:3])}, but size is {_px(size)}: resize the image, or leave size out.")
            size = (image.shape[1], image.shape[2])
        if mask is not None:
            if image is None:
                raise ValueError("mask needs an image to repaint: give `image` too.")
            mask = _one_each(mask, num, name="mask", dtype=np.bool_)
            if mask.shape[1:] != image.shape[1:3]:
                raise ValueError(f"mask is {_px(mask.shape[1:])}, but image is {_px(image.shape[1:3])}: give them the same size.")
        if size is None:
            h, w = noise.shape[2:] if noise is not None and noise.ndim == 4 else (h, w)
            size = (h * stride, w * stride)
        if min(size) < stride or size[0] % stride or size[1] % stride:
            raise ValueError(f"size is {_px(size)}; both sides must be multiples of {stride} px, the stride of the VAE.")
        latent_shape = (channels, size[0] // stride, size[1] // stride)
        if noise is not None and noise.shape != (num, *latent_shape):
            raise ValueError(f"noise has the shape {tuple(noise.shape)}; {num} images of {_px(size)} need {(num, *latent_shape)}.")
        return cls(size=size, latent_shape=latent_shape, images=image, mask=mask, noise=noise)

    def latent_mask(self, rows: slice) -> Tensor | None:
        """(b, 1, h, w): 1 where a pixel of the latent pixel is repainted, 0 where none is."""
        if self.mask is None:
            return None
        return F.max_pool2d(torch.tensor(self.mask[rows]).float()[:, None], self.size[0] // self.latent_shape[1])


def pixel_mask(latent_mask: Tensor, stride: int) -> Tensor:
    """(B, 1, h, w) -> (B, 1, H, W): 1 on the pixels of repainted latent pixels, falling to 0 within `stride` px beyond them.

    A pixel depends on latents far around it (through the decoder's norms on all of them), so pixels change even if their own latents
    do not. Therefore the kept pixels are blended over the drawn ones, with a soft edge.
    """
    reach = max(1, stride // 2)
    width = 2 * reach + 1
    hard = F.interpolate(latent_mask, scale_factor=stride, mode="nearest")
    wider = F.max_pool2d(hard, width, stride=1, padding=reach)
    return F.avg_pool2d(wider, width, stride=1, padding=reach, count_include_pad=False)


def _one_each(array: np.ndarray, num: int, *, name: str, dtype: type, channels: tuple[int, ...] = ()) -> np.ndarray:
    """(num, H, W, *channels) from one array for all prompts, or one per prompt."""
    array = np.asarray(array)
    ndim = 2 + len(channels)
    leading, last = array.shape[:-ndim], array.shape[-ndim:]
    if array.dtype != dtype or leading not in ((), (num,)) or len(last) < ndim or last[2:] != channels:
        one, several = (f"({', '.join(map(str, sides))})" for sides in (("H", "W", *channels), (num, "H", "W", *channels)))
        wanted = f"{np.dtype(dtype)} of shape {one}, one for all prompts, or {several}, one per prompt"
        raise ValueError(f"{name} is {array.dtype} of shape {array.shape}; must be {wanted}.")
    return np.broadcast_to(array, (num, *last))


def _px(size: tuple[int, ...]) -> str:
    return f"{size[1]} x {size[0]} px"
