"""Tiny autoencoders of the TAESD family (github.com/madebyollin/taesd, MIT): small networks that were taught the latents of a large one.

They come pretrained, with 2.4 to 2.7 million weights (the autoencoder of Stable Diffusion has 84 million), and are deterministic: an image
has one latent, not a distribution.
"""

import math
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darkroom.models.autoencoder import Autoencoder, AutoencoderConfig
from darkroom.models.weights import empty, load_weights, read_weights

LATENT_LIMIT = 3.0  # the decoder clamps raw latents softly to +- this, whatever `latent_magnitude` says; diffusers too
POOL_GROUPS, POOL_FACTOR = 4, 4  # of a pooled block: groups of the norm; its channels as a multiple of the block's


@dataclass(frozen=True, kw_only=True)
class TinyAutoencoderConfig(AutoencoderConfig):
    """The configuration of diffusers' AutoencoderTiny, and two fields that it lacks: `use_midblock_gn` and `sample_size`.

    These two are written only if they are set. diffusers does not know pooled blocks: it loads such a folder with a warning,
    leaves their weights out, and its pictures are wrong.
    """

    CLASS_NAME: ClassVar[str] = "AutoencoderTiny"
    IMPLIED: ClassVar[dict[str, tuple[Any, ...]]] = {
        "act_fn": ("relu",),
        "upsample_fn": ("nearest",),
        "upsampling_scaling_factor": (2,),
        "latent_shift": (0.5,),  # the middle of the range that 8 bits can hold; no encoder or decoder uses it
        "force_upcast": (True, False),  # a hint for half-precision pipelines
    }

    in_channels: int = 3
    out_channels: int = 3
    encoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)  # one per resolution, finest first; all the same
    decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)  # one per resolution, coarsest first; all the same
    block_out_channels: tuple[int, ...] = ()  # diffusers writes it for its pipelines; () = those of the decoder, the only choice
    num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    latent_magnitude: float = 3  # raw latents are rounded to 8 bits between +- this: see `latent_std`
    scaling_factor: float = 1.0
    shift_factor: float = 0.0
    use_midblock_gn: bool = False  # pooled blocks at the coarsest resolution (TAEF2); named as in taesd.py
    sample_size: int = 0  # px, side of the images it is used with; 0 = not known

    def check(self) -> None:
        for side in ("encoder", "decoder"):
            widths, counts = getattr(self, f"{side}_block_out_channels"), getattr(self, f"num_{side}_blocks")
            if len(widths) != len(counts) or not widths:
                raise ValueError(f"`{side}_block_out_channels` and `num_{side}_blocks` must have one entry per resolution, the same number")
            if len(set(widths)) > 1:
                raise ValueError(f"`{side}_block_out_channels` is {list(widths)}: all must be the same, no layer changes the width")
        if len(self.num_encoder_blocks) != len(self.num_decoder_blocks):
            raise ValueError(
                f"`num_encoder_blocks` has {len(self.num_encoder_blocks)} resolutions and `num_decoder_blocks` "
                f"{len(self.num_decoder_blocks)}: images would come back in another size"
            )
        if (self.block_out_channels or self.decoder_block_out_channels) != self.decoder_block_out_channels:
            raise ValueError("`block_out_channels` must be the same as `decoder_block_out_channels`: change it or leave it out")
        if self.latent_magnitude <= 0:
            raise ValueError(f"`latent_magnitude` is {self.latent_magnitude}, but must be above 0; published weights have 3")
        object.__setattr__(self, "block_out_channels", self.decoder_block_out_channels)

    def to_json(self) -> dict[str, Any]:
        extra = {"use_midblock_gn": False, "sample_size": 0}
        return {key: value for key, value in super().to_json().items() if key not in extra or value != extra[key]}

    @property
    def stride(self) -> int:
        return 2 ** (len(self.encoder_block_out_channels) - 1)

    @property
    def latent_std(self) -> float:
        """The standard deviation of raw latents that 8 bits round, evenly spread over half a step to both sides (step^2 / 12).

        This is the precision that the family is made for: its own script and diffusers' `AutoencoderTiny.forward` store a latent
        in 256 steps between -`latent_magnitude` and +`latent_magnitude`.
        """
        return 2 * self.latent_magnitude / 255 / math.sqrt(12)


class TinyAutoencoder(Autoencoder):
    """Images to latents and back by two small networks.

    The encoder gives one latent, not a distribution. Readers want one with a density (bounds of the likelihood, noise on latents):
    a Gaussian around that latent, whose standard deviation is the constant `TinyAutoencoderConfig.latent_std`, of rounding to 8 bits.
    """

    Config = TinyAutoencoderConfig
    config: TinyAutoencoderConfig

    def __init__(self, config: TinyAutoencoderConfig) -> None:
        super().__init__(config)
        self.encoder = TinyEncoder(config)
        self.decoder = TinyDecoder(config)

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.check_size(images)
        mean = self.encoder(images).float()
        return mean, torch.full_like(mean, 2 * math.log(self.config.latent_std))

    def decode(self, raw: Tensor) -> Tensor:
        return self.decoder(raw)


class TinyEncoder(nn.Module):
    def __init__(self, config: TinyAutoencoderConfig) -> None:
        super().__init__()
        width, last = config.encoder_block_out_channels[0], len(config.num_encoder_blocks) - 1
        layers: list[nn.Module] = []
        for level, num_blocks in enumerate(config.num_encoder_blocks):
            layers.append(nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False) if level else conv3(config.in_channels, width))
            layers += [TinyBlock(width, pooled=config.use_midblock_gn and level == last) for _ in range(num_blocks)]
        self.layers = nn.Sequential(*layers, conv3(width, config.latent_channels))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> raw latents (B, C, h, w)"""
        return self.layers((images + 1) / 2)  # the family sees [0, 1]


class TinyDecoder(nn.Module):
    def __init__(self, config: TinyAutoencoderConfig) -> None:
        super().__init__()
        width, last = config.decoder_block_out_channels[0], len(config.num_decoder_blocks) - 1
        layers: list[nn.Module] = [conv3(config.latent_channels, width), nn.ReLU()]
        for level, num_blocks in enumerate(config.num_decoder_blocks):
            layers += [TinyBlock(width, pooled=config.use_midblock_gn and level == 0) for _ in range(num_blocks)]
            if level < last:
                layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1, bias=False)]
        self.layers = nn.Sequential(*layers, conv3(width, config.out_channels))

    def forward(self, raw: Tensor) -> Tensor:
        """(B, C, h, w) -> images (B, 3, H, W), about [-1, 1]"""
        return self.layers(torch.tanh(raw / LATENT_LIMIT) * LATENT_LIMIT) * 2 - 1


class TinyBlock(nn.Module):
    """Three convolutions beside a skip connection; `pooled` adds a norm over the whole image, through which far places are felt."""

    def __init__(self, channels: int, *, pooled: bool) -> None:
        super().__init__()
        relu, inner = nn.ReLU(), POOL_FACTOR * channels
        self.conv = nn.Sequential(conv3(channels, channels), relu, conv3(channels, channels), relu, conv3(channels, channels))
        pool = (
            nn.Conv2d(channels, inner, 1, bias=False),
            nn.GroupNorm(POOL_GROUPS, inner),
            relu,
            nn.Conv2d(inner, channels, 1, bias=False),
        )
        self.pool = nn.Sequential(*pool) if pooled else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)"""
        if self.pool is not None:
            x = x + self.pool(x)
        return F.relu(self.conv(x) + x)


def conv3(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


def load_taesd(where: Path | str) -> TinyAutoencoder:
    """A tiny autoencoder from two files in the naming of github.com/madebyollin/taesd, fp32, on the CPU, in evaluation mode.

    The configuration follows from the names and shapes of the tensors.

    Args:
        where: a folder with one `*encoder*.safetensors` and one `*decoder*.safetensors`; or the path of both up to
            `_encoder.safetensors` and `_decoder.safetensors`, which chooses among several in a folder.

    Raises:
        ValueError: a file is missing or unreadable, a folder has several, or the two are not one autoencoder of this family.
    """
    files = [_taesd_file(Path(where), part) for part in ("encoder", "decoder")]
    encoder, decoder = (read_weights(file) for file in files)
    (first, last), (decoder_first, decoder_last) = _outer_convs(encoder, files[0]), _outer_convs(decoder, files[1])
    if last.shape[0] != decoder_first.shape[1]:
        raise ValueError(
            f"{files[0]} makes {last.shape[0]} latent channels, but {files[1]} takes {decoder_first.shape[1]}: "
            "they are not one autoencoder. Take both files from the same place."
        )
    num_encoder_blocks, num_decoder_blocks = _num_blocks(encoder), _num_blocks(decoder)
    values = {
        "_class_name": TinyAutoencoderConfig.CLASS_NAME,
        "in_channels": first.shape[1],
        "out_channels": decoder_last.shape[0],
        "latent_channels": last.shape[0],
        "encoder_block_out_channels": [first.shape[0]] * len(num_encoder_blocks),
        "decoder_block_out_channels": [decoder_first.shape[0]] * len(num_decoder_blocks),
        "num_encoder_blocks": num_encoder_blocks,
        "num_decoder_blocks": num_decoder_blocks,
        "use_midblock_gn": any(".pool." in name for name in encoder | decoder),
    }
    model = empty(TinyAutoencoder, TinyAutoencoderConfig.from_json(values, f"{files[0]} and {files[1].name}"))
    for network, weights, file, offset in ((model.encoder, encoder, files[0], 0), (model.decoder, decoder, files[1], 1)):
        load_weights(network, _layer_names(weights, offset), where=f"{file} (in diffusers' names)")
    return model.eval()


def _taesd_file(where: Path, part: str) -> Path:
    if not where.is_dir():
        return Path(f"{where}_{part}.safetensors")
    found = sorted(where.glob(f"*{part}*.safetensors"))
    if len(found) != 1:
        names = f" ({', '.join(file.name for file in found)})" if found else ""
        raise ValueError(
            f"{where} has {len(found)} files `*{part}*.safetensors`{names} instead of one. "
            f"Give a folder with one, or the path of a file up to `_{part}.safetensors`. Weights are never read from a pickle (.pth)."
        )
    return found[0]


def _outer_convs(weights: dict[str, Tensor], file: Path) -> tuple[Tensor, Tensor]:
    """The weights of the first and the last convolution, (out, in, 3, 3)."""
    convs = _numbers(weights, r"(\d+)\.weight")
    ends = [weights[f"{number}.weight"] for number in convs[:1] + convs[-1:]]
    if len(convs) < 2 or not all(_num_blocks(weights)) or any(weight.ndim != 4 for weight in ends):
        raise ValueError(
            f"{file} is not of a tiny autoencoder that is known here, with blocks between all convolutions. "
            "Take taesd, taesdxl, taesd3, taef1 or taef2 of github.com/madebyollin/taesd; taesana is another architecture."
        )
    return ends[0], ends[1]


def _num_blocks(weights: dict[str, Tensor]) -> tuple[int, ...]:
    """How many blocks lie between one convolution and the next."""
    blocks = _numbers(weights, r"(\d+)\.conv\.0\.weight")
    return tuple(sum(start < block < end for block in blocks) for start, end in pairwise(_numbers(weights, r"(\d+)\.weight")))


def _numbers(weights: dict[str, Tensor], pattern: str) -> list[int]:
    return sorted(int(found[1]) for name in weights if (found := re.fullmatch(pattern, name)))


def _layer_names(weights: dict[str, Tensor], offset: int) -> dict[str, Tensor]:
    """`3.conv.0.weight` -> `layers.2.conv.0.weight` with offset 1: taesd.py counts the decoder's soft clamp as a layer."""
    return {re.sub(r"^\d+", lambda found: f"layers.{int(found[0]) - offset}", name): value for name, value in weights.items()}
