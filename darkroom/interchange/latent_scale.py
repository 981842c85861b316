"""Scale and shift of an autoencoder's latents, moved into its weights, for readers that have no place for them."""

import dataclasses
import math

import torch
from torch import Tensor, nn

from darkroom.models.autoencoder import AutoencoderKL
from darkroom.models.weights import assemble


def fold_scale(vae: AutoencoderKL, scaling_factor: float) -> AutoencoderKL:
    """An autoencoder with the same normalised latents whose configuration has this scale and no shift.

    The 1x1 convolutions beside the raw latents, which get added where there are none, take the difference: with
    r = old scale / new scale, mean' = (mean - shift) r, logvar' = logvar + 2 ln r and raw = raw' / r + shift.
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
