"""The variational autoencoder of latent diffusion (Kingma & Welling 2014; Rombach et al. 2022, appendix G)."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darkroom.models.autoencoder import Autoencoder, AutoencoderConfig
from darkroom.models.layers import Downsample, PixelAttention, ResidualBlock, Upsample, reset_parameters
from darkroom.models.weights import assemble

EPS = 1e-6  # of every norm
LOGVAR_RANGE = (-30.0, 20.0)  # keeps exp() finite


@dataclass(frozen=True, kw_only=True)
class AutoencoderKLConfig(AutoencoderConfig):
    CLASS_NAME: ClassVar[str] = "AutoencoderKL"
    IMPLIED: ClassVar[dict[str, tuple[Any, ...]]] = {
        "act_fn": ("silu",),
        "latents_mean": (None,),
        "latents_std": (None,),
        "force_upcast": (True, False),  # a hint for half-precision pipelines
    }

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ()  # one per resolution; () = the default, the only type
    up_block_types: tuple[str, ...] = ()
    block_out_channels: tuple[int, ...] = (64,)  # one per resolution, finest first; each after the first halves the side
    layers_per_block: int = 1  # residual blocks per resolution; the decoder has one more
    norm_num_groups: int = 32
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    def check(self) -> None:
        levels = len(self.block_out_channels)
        for name, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            if (getattr(self, name) or (kind,) * levels) != (kind,) * levels:
                raise ValueError(f"`{name}` must be {levels} times {kind!r}, one per entry of `block_out_channels`")
            object.__setattr__(self, name, (kind,) * levels)
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise ValueError(
                    f"`block_out_channels` has {channels}, not a multiple of `norm_num_groups` ({self.norm_num_groups}): change one of them"
                )

    @property
    def stride(self) -> int:
        return 2 ** (len(self.block_out_channels) - 1)


class AutoencoderKL(Autoencoder):
    """The autoencoder of Stable Diffusion, in diffusers' layout."""

    Config = AutoencoderKLConfig
    config: AutoencoderKLConfig

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__(config)
        channels = config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1) if config.use_quant_conv else None
        self.post_quant_conv = nn.Conv2d(channels, channels, 1) if config.use_post_quant_conv else None

    def initialise(self, seed: int) -> None:
        """Draw all weights for training from scratch; not needed for a loaded model.

        Every layer has torch's default (uniform, scaled by the fan-in), drawn from `seed` alone. The second convolution
        of a residual block is 0, so that each block starts as the identity (Goyal et al. 2017, section 5.1).
        """
        reset_parameters(self, seed)
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                nn.init.zeros_(module.conv2.weight)

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.check_size(images)
        moments = self.encoder(images)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        mean, logvar = moments.float().chunk(2, dim=1)
        return mean, logvar.clamp(*LOGVAR_RANGE)

    def decode(self, raw: Tensor) -> Tensor:
        if self.post_quant_conv is not None:
            raw = self.post_quant_conv(raw)
        return self.decoder(raw)


class Encoder(nn.Module):
    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for level, width in enumerate(widths):
            inputs = [widths[max(level - 1, 0)], *[width] * (config.layers_per_block - 1)]
            down = Downsample(width, asymmetric=True) if level < len(widths) - 1 else None
            self.down_blocks.append(Level(inputs, width, groups, down=down))
        self.mid_block = MidBlock(widths[-1], groups, attention=config.mid_block_add_attention)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> moments (B, 2C, h, w)"""
        x = self.conv_in(images)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0], groups, attention=config.mid_block_add_attention)
        self.up_blocks = nn.ModuleList()
        for level, width in enumerate(widths):
            inputs = [widths[max(level - 1, 0)], *[width] * config.layers_per_block]
            up = Upsample(width) if level < len(widths) - 1 else None
            self.up_blocks.append(Level(inputs, width, groups, up=up))
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, raw: Tensor) -> Tensor:
        """(B, C, h, w) -> images (B, 3, H, W)"""
        x = self.mid_block(self.conv_in(raw))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Level(nn.Module):
    """The residual blocks of one resolution, then the step to the next resolution (if there is one)."""

    def __init__(
        self,
        in_channels: Sequence[int],  # of each residual block
        out_channels: int,
        groups: int,
        *,
        down: Downsample | None = None,
        up: Upsample | None = None,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(width, out_channels, groups=groups, eps=EPS) for width in in_channels)
        self.downsamplers = nn.ModuleList([down]) if down else None
        self.upsamplers = nn.ModuleList([up]) if up else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', h', w')"""
        for module in (*self.resnets, *(self.downsamplers or ()), *(self.upsamplers or ())):
            x = module(x)
        return x


class MidBlock(nn.Module):
    def __init__(self, channels: int, groups: int, *, attention: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(channels, channels, groups=groups, eps=EPS) for _ in range(2))
        self.attentions = nn.ModuleList([PixelAttention(channels, groups=groups, eps=EPS)]) if attention else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)"""
        x = self.resnets[0](x)
        for attention in self.attentions or ():
            x = attention(x)
        return self.resnets[1](x)


def fold_scale(vae: AutoencoderKL, scaling_factor: float) -> AutoencoderKL:
    """The same autoencoder with another scale and no shift in its configuration, for formats that cannot store them.

    The normalised latents stay the same. The 1x1 convolutions next to the raw latents absorb the difference, and are added where
    they are missing: with r = old scale / new scale, mean' = (mean - shift) r, logvar' = logvar + 2 ln r and raw = raw' / r + shift.
    """
    config, channels = vae.config, vae.config.latent_channels
    ratio, shift = config.scaling_factor / scaling_factor, config.shift_factor or 0.0
    weights = vae.state_dict()

    quant_weight, quant_bias = _pointwise(vae.quant_conv, 2 * channels)
    gain = torch.cat([quant_bias.new_full((channels,), ratio), quant_bias.new_ones(channels)])
    offset = torch.cat([quant_bias.new_full((channels,), -shift * ratio), quant_bias.new_full((channels,), 2 * math.log(ratio))])
    weights["quant_conv.weight"] = (quant_weight * gain[:, None, None, None]).float()
    weights["quant_conv.bias"] = (quant_bias * gain + offset).float()

    post_weight, post_bias = _pointwise(vae.post_quant_conv, channels)
    weights["post_quant_conv.weight"] = (post_weight / ratio).float()
    weights["post_quant_conv.bias"] = (post_bias + shift * post_weight.sum(dim=(1, 2, 3))).float()

    folded = dataclasses.replace(config, scaling_factor=scaling_factor, shift_factor=None, use_quant_conv=True, use_post_quant_conv=True)
    return assemble(AutoencoderKL, folded, weights, where="the folded autoencoder")


def _pointwise(conv: nn.Conv2d | None, channels: int) -> tuple[Tensor, Tensor]:
    """Weight (C, C, 1, 1) and bias (C,) of a 1x1 convolution in float64; None is the identity."""
    if conv is None:
        return torch.eye(channels, dtype=torch.float64)[:, :, None, None], torch.zeros(channels, dtype=torch.float64)
    assert conv.bias is not None
    return conv.weight.detach().double(), conv.bias.detach().double()
