"""Layers that the autoencoder and the U-Net share. Attribute names are diffusers' state-dict keys."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def reset_parameters(module: nn.Module, seed: int) -> None:
    """Draw torch's default initial values for every layer, in order; the state of the global generator does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear | nn.GroupNorm | nn.LayerNorm):
                layer.reset_parameters()


def timestep_embedding(timesteps: Tensor, dim: int, *, flip_sin_to_cos: bool, freq_shift: float) -> Tensor:
    """Sinusoids of geometrically spaced frequencies (Vaswani et al. 2017, section 3.5), always in fp32.

    Args:
        timesteps: (B,), may be fractional.
        dim: even width of the embedding.
        flip_sin_to_cos: cosines first (Stable Diffusion) instead of sines first (DDPM).
        freq_shift: taken from the number of frequencies: 1 makes the slowest one exactly 1/10000.

    Returns:
        (B, dim)
    """
    half = dim // 2
    exponents = -math.log(10_000) * torch.arange(half, dtype=torch.float32, device=timesteps.device)
    angles = timesteps.float()[:, None] * torch.exp(exponents / (half - freq_shift))
    waves = [angles.cos(), angles.sin()] if flip_sin_to_cos else [angles.sin(), angles.cos()]
    return torch.cat(waves, dim=-1)


class TimestepMlp(nn.Module):
    def __init__(self, in_features: int, features: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_features, features)
        self.linear_2 = nn.Linear(features, features)

    def forward(self, embedding: Tensor) -> Tensor:
        """(B, in_features) -> (B, features)"""
        return self.linear_2(F.silu(self.linear_1(embedding)))


class Recomputed(nn.Module):
    """Base of blocks with gradient checkpointing: they discard their activations and compute them again for the backward pass.

    Chen et al. 2016: a third more arithmetic, and only the inputs of each block stay in memory. No block draws random numbers, so
    there is no state of a generator to restore.
    """

    forgets = False

    def __call__(self, *inputs: Tensor | None) -> Any:
        if self.forgets and torch.is_grad_enabled():
            return checkpoint(super().__call__, *inputs, use_reentrant=False, preserve_rng_state=False)
        return super().__call__(*inputs)


def use_gradient_checkpointing(net: nn.Module) -> None:
    """Switch gradient checkpointing on for all blocks of `net`."""
    for module in net.modules():
        if isinstance(module, Recomputed):
            module.forgets = True


class ResidualBlock(Recomputed):
    """norm, SiLU, conv twice, with the timestep added in the middle (He et al. 2016 in the form of Ho et al. 2020)."""

    def __init__(self, in_channels: int, out_channels: int, *, groups: int, eps: float, time_features: int | None = None) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_features, out_channels) if time_features else None
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """x (B, C, h, w); time (B, time_features) after SiLU, which all blocks share -> (B, C', h, w)"""
        h = self.conv1(F.silu(self.norm1(x)))
        if self.time_emb_proj is not None:
            h = h + self.time_emb_proj(time)[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v (Vaswani et al. 2017, equation 1): (B, heads, N, d), twice (B, heads, L, d) -> (B, heads, N, d)

    The CPU's fused kernel spends 3 to 9 times as long as three plain operations on the backward pass of bf16 while the
    table of scores is small, as it is for small latents (docs/benchmarks.md).
    """
    small = query.shape[2] * key.shape[2] <= 256 * 256
    if not (small and query.device.type == "cpu" and query.dtype == torch.bfloat16):
        return F.scaled_dot_product_attention(query, key, value)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    return torch.softmax(scores, dim=-1).to(value.dtype) @ value  # autocast makes the softmax fp32


class Attention(nn.Module):
    """Multi-head attention of tokens with `channels` channels to themselves or to a context."""

    def __init__(self, channels: int, heads: int, *, context_dim: int | None = None, bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=bias)
        self.to_k = nn.Linear(context_dim or channels, channels, bias=bias)
        self.to_v = nn.Linear(context_dim or channels, channels, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        """tokens (B, N, C), context (B, L, D) -> (B, N, C)"""
        context = tokens if context is None else context
        query, key, value = (self._split(x) for x in (self.to_q(tokens), self.to_k(context), self.to_v(context)))
        mixed = attend(query, key, value)  # (B, heads, N, C / heads)
        return self.to_out[0](mixed.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class PixelAttention(Attention):
    """One-head self-attention over the pixels of a feature map, with its own norm and residual (in the autoencoder)."""

    def __init__(self, channels: int, *, groups: int, eps: float) -> None:
        super().__init__(channels, heads=1, bias=True)
        self.group_norm = nn.GroupNorm(groups, channels, eps=eps)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x (B, C, h, w) -> (B, C, h, w)"""
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)  # (B, h*w, C)
        return x + super().forward(tokens, context).transpose(1, 2).unflatten(2, x.shape[2:])


class GatedLinear(nn.Module):
    """GEGLU (Shazeer 2020): one half of a linear map, gated by the GELU of the other half."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_features, 2 * out_features)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)"""
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        # The middle entry stands for the dropout of diffusers' layout; without it the last layer would not be number 2.
        self.net = nn.Sequential(GatedLinear(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)"""
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the caption, feed-forward; each after a LayerNorm and with a residual."""

    def __init__(self, channels: int, heads: int, context_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, heads, context_dim=context_dim)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        """tokens (B, N, C), context (B, L, D) -> (B, N, C)"""
        tokens = tokens + self.attn1(self.norm1(tokens))
        tokens = tokens + self.attn2(self.norm2(tokens), context)
        return tokens + self.ff(self.norm3(tokens))


class SpatialTransformer(Recomputed):
    """A transformer block over the pixels of a feature map (Rombach et al. 2022, appendix E.2.1)."""

    def __init__(self, channels: int, heads: int, context_dim: int, *, groups: int, linear_projection: bool) -> None:
        super().__init__()
        self.linear_projection = linear_projection
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels) if linear_projection else nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, heads, context_dim)])
        self.proj_out = nn.Linear(channels, channels) if linear_projection else nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x (B, C, h, w), context (B, L, D) -> (B, C, h, w)"""
        h = self.norm(x)
        if not self.linear_projection:
            h = self.proj_in(h)
        tokens = h.flatten(2).transpose(1, 2)  # (B, h*w, C)
        if self.linear_projection:
            tokens = self.proj_in(tokens)
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        if self.linear_projection:
            tokens = self.proj_out(tokens)
        h = tokens.transpose(1, 2).unflatten(2, x.shape[2:])  # (B, C, h, w)
        return x + (h if self.linear_projection else self.proj_out(h))


class Downsample(nn.Module):
    def __init__(self, channels: int, *, asymmetric: bool) -> None:
        """`asymmetric` pads right and bottom only, as the autoencoder of latent diffusion does and its U-Net does not."""
        super().__init__()
        self.asymmetric = asymmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if asymmetric else 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h/2, w/2)"""
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.asymmetric else x)


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: torch.Size | None = None) -> Tensor:
        """(B, C, h, w) -> (B, C, *size), by default twice as large"""
        size = size or torch.Size([2 * x.shape[2], 2 * x.shape[3]])
        return self.conv(F.interpolate(x, size=size, mode="nearest"))
