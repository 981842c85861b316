"""The text-conditioned U-Net of latent diffusion (Rombach et al. 2022): Stable Diffusion 1.x and 2.x by configuration alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darkroom.models.layers import (
    Downsample,
    ResidualBlock,
    SpatialTransformer,
    TimestepMlp,
    Upsample,
    reset_parameters,
    timestep_embedding,
)
from darkroom.models.weights import ModelConfig, StoredModel

DOWN_TYPES = {True: "CrossAttnDownBlock2D", False: "DownBlock2D"}  # with attention, without
UP_TYPES = {True: "CrossAttnUpBlock2D", False: "UpBlock2D"}


@dataclass(frozen=True, kw_only=True)
class UNetConfig(ModelConfig):
    CLASS_NAME: ClassVar[str] = "UNet2DConditionModel"
    IMPLIED: ClassVar[dict[str, tuple[Any, ...]]] = {
        **dict.fromkeys(("addition_embed_type", "addition_time_embed_dim", "class_embed_type", "num_class_embeds"), (None,)),
        **dict.fromkeys(("encoder_hid_dim", "encoder_hid_dim_type", "projection_class_embeddings_input_dim"), (None,)),
        **dict.fromkeys(("time_cond_proj_dim", "time_embedding_act_fn", "time_embedding_dim", "timestep_post_act"), (None,)),
        **dict.fromkeys(("cross_attention_norm", "num_attention_heads", "reverse_transformer_layers_per_block"), (None,)),
        **dict.fromkeys(("center_input_sample", "class_embeddings_concat", "dual_cross_attention"), (False,)),
        **dict.fromkeys(("only_cross_attention", "resnet_skip_time_act"), (False,)),
        **dict.fromkeys(("downsample_padding", "mid_block_scale_factor", "resnet_out_scale_factor"), (1,)),
        **dict.fromkeys(("conv_in_kernel", "conv_out_kernel"), (3,)),
        "act_fn": ("silu",),
        "addition_embed_type_num_heads": (64,),  # unused while addition_embed_type is null
        "attention_type": ("default",),
        "dropout": (0.0,),
        "mid_block_only_cross_attention": (None, False),
        "mid_block_type": ("UNetMidBlock2DCrossAttn",),
        "resnet_time_scale_shift": ("default",),
        "time_embedding_type": ("positional",),
        "transformer_layers_per_block": (1,),
        "upcast_attention": (False, True, None),  # a hint for half precision; SDPA accumulates in fp32 anyway
    }

    sample_size: int | None = None  # latent pixels per side, in training
    in_channels: int = 4
    out_channels: int = 4
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)  # one per resolution
    up_block_types: tuple[str, ...] = ()  # () = the mirror image of the way down
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)  # one per resolution
    layers_per_block: int = 2  # residual blocks per resolution on the way down; one more on the way up
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int = 1280  # width of the context
    attention_head_dim: int | tuple[int, ...] = 8  # NUMBER of heads, for all resolutions or one each; diffusers' name is wrong
    use_linear_projection: bool = False  # Stable Diffusion 2.x

    @classmethod
    def from_levels(
        cls,
        *,
        block_out_channels: Sequence[int],
        attention: Sequence[bool],  # one per resolution; the middle always attends
        layers_per_block: int,
        channels_per_head: int,
        norm_num_groups: int,
        latent_channels: int,
        latent_size: int,
        context_dim: int,
    ) -> Self:
        """The configuration of a new U-Net, from plain terms to those of diffusers.

        Raises:
            ValueError: see `check`.
        """
        for channels in block_out_channels:
            if channels % channels_per_head:
                raise ValueError(
                    f"`block_out_channels` has {channels}, not a multiple of the {channels_per_head} channels of an attention head: "
                    "change one of them"
                )
        return cls(
            sample_size=latent_size,
            in_channels=latent_channels,
            out_channels=latent_channels,
            down_block_types=tuple(DOWN_TYPES[bool(attends)] for attends in attention),
            block_out_channels=tuple(block_out_channels),
            layers_per_block=layers_per_block,
            norm_num_groups=norm_num_groups,
            cross_attention_dim=context_dim,
            attention_head_dim=tuple(channels // channels_per_head for channels in block_out_channels),
            use_linear_projection=True,
        )

    def check(self) -> None:
        levels = len(self.block_out_channels)
        if len(self.down_block_types) != levels or not set(self.down_block_types) <= set(DOWN_TYPES.values()):
            kinds = " or ".join(DOWN_TYPES.values())
            raise ValueError(f"`down_block_types` must be {levels} times {kinds}, one per entry of `block_out_channels`")
        mirrored = tuple(UP_TYPES[attends] for attends in reversed(self.attention))
        if (self.up_block_types or mirrored) != mirrored:
            raise ValueError(f"`up_block_types` must mirror `down_block_types`: {list(mirrored)}")
        object.__setattr__(self, "up_block_types", mirrored)
        if len(self.heads) != levels:
            raise ValueError(f"`attention_head_dim` has {len(self.heads)} entries, `block_out_channels` {levels}: give one each")
        for channels, heads in zip(self.block_out_channels, self.heads, strict=True):
            if channels % self.norm_num_groups:
                raise ValueError(
                    f"`block_out_channels` has {channels}, not a multiple of `norm_num_groups` ({self.norm_num_groups}): change one of them"
                )
            if channels % heads:
                raise ValueError(f"`block_out_channels` has {channels}, which {heads} attention heads (`attention_head_dim`) do not divide")

    @property
    def attention(self) -> tuple[bool, ...]:
        """Per resolution: whether it attends to the caption."""
        return tuple(kind == DOWN_TYPES[True] for kind in self.down_block_types)

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads per resolution."""
        heads = self.attention_head_dim
        return (heads,) * len(self.block_out_channels) if isinstance(heads, int) else heads


class UNet2DConditionModel(StoredModel):
    """Predicts noise or velocity from noised latents, the timestep and the caption's token embeddings."""

    Config = UNetConfig
    config: UNetConfig

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        widths, groups, layers = config.block_out_channels, config.norm_num_groups, config.layers_per_block
        last = len(widths) - 1

        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimestepMlp(widths[0], 4 * widths[0])
        self.augmentation_embedding: nn.Linear | None = None  # in training alone, see `learn_labels`

        self.down_blocks = nn.ModuleList()
        skips = [widths[0]]  # channels of the skip connections
        for level, width in enumerate(widths):
            inputs = [widths[max(level - 1, 0)], *[width] * (layers - 1)]
            down = Downsample(width, asymmetric=False) if level < last else None
            self.down_blocks.append(DownBlock(config, level, inputs, down))
            skips += [width] * (layers + (level < last))

        self.mid_block = MidBlock(config)

        self.up_blocks = nn.ModuleList()
        channels = widths[-1]
        for level in reversed(range(len(widths))):
            inputs = []
            for _ in range(layers + 1):
                inputs.append(channels + skips.pop())
                channels = widths[level]
            self.up_blocks.append(UpBlock(config, level, inputs, Upsample(channels) if level > 0 else None))

        self.conv_norm_out = nn.GroupNorm(groups, widths[0], eps=config.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

    def initialise(self, seed: int) -> None:
        """Draw all weights for training from scratch; not needed for a loaded model.

        Every layer has torch's default (uniform, scaled by the fan-in), drawn from `seed` alone. The last layer of each
        residual branch is 0, so that each block starts as the identity (Ho et al. 2020, their code; Dhariwal & Nichol 2021).
        The last convolution is 0 too: the first prediction is 0 and the first loss is the variance of the target.
        """
        reset_parameters(self, seed)
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                nn.init.zeros_(module.conv2.weight)
            if isinstance(module, SpatialTransformer):
                nn.init.zeros_(module.proj_out.weight)
        for parameter in self.conv_out.parameters():
            nn.init.zeros_(parameter)

    def learn_labels(self, num: int) -> None:
        """Let `forward` take augmentation labels: `num` numbers that say what was done to an image (Karras et al. 2022, appendix F.2).

        They are added to the embedding of the timestep, before its MLP. Their weights begin at 0 and there is no bias, so that labels
        of 0 change nothing: samples need neither labels nor these weights.
        """
        device = self.conv_in.weight.device
        embedding = nn.utils.skip_init(nn.Linear, num, self.config.block_out_channels[0], bias=False, device=device)
        nn.init.zeros_(embedding.weight)
        self.augmentation_embedding = embedding

    def forget_labels(self) -> None:
        """Drop the weights of `learn_labels`: what is left predicts as it did with labels of 0, and has the names of diffusers."""
        self.augmentation_embedding = None

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor, labels: Tensor | None = None) -> Tensor:
        """x (B, C, h, w), timesteps (B,), may be fractional, context (B, L, D), labels (B, A) of `learn_labels` -> (B, C, h, w)"""
        config = self.config
        waves = timestep_embedding(
            timesteps, config.block_out_channels[0], flip_sin_to_cos=config.flip_sin_to_cos, freq_shift=config.freq_shift
        )
        waves = waves.to(x.dtype)
        if labels is not None:
            assert self.augmentation_embedding is not None, "a U-Net takes labels after `learn_labels`"
            waves = waves + self.augmentation_embedding(labels)
        time = F.silu(self.time_embedding(waves))  # (B, 4 * width)
        x = self.conv_in(x)
        skips = [x]
        for block in self.down_blocks:
            x = block(x, time, context, skips)
        x = self.mid_block(x, time, context)
        for block in self.up_blocks:
            x = block(x, time, context, skips)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


def residual_blocks(config: UNetConfig, in_channels: Sequence[int], out_channels: int) -> nn.ModuleList:
    groups, eps, features = config.norm_num_groups, config.norm_eps, 4 * config.block_out_channels[0]
    return nn.ModuleList(ResidualBlock(width, out_channels, groups=groups, eps=eps, time_features=features) for width in in_channels)


def transformers(config: UNetConfig, level: int, count: int) -> nn.ModuleList:
    channels, heads, linear = config.block_out_channels[level], config.heads[level], config.use_linear_projection
    groups, context_dim = config.norm_num_groups, config.cross_attention_dim
    return nn.ModuleList(SpatialTransformer(channels, heads, context_dim, groups=groups, linear_projection=linear) for _ in range(count))


class DownBlock(nn.Module):
    def __init__(self, config: UNetConfig, level: int, in_channels: Sequence[int], down: Downsample | None) -> None:
        super().__init__()
        self.resnets = residual_blocks(config, in_channels, config.block_out_channels[level])
        self.attentions = transformers(config, level, len(in_channels)) if config.attention[level] else None
        self.downsamplers = nn.ModuleList([down]) if down else None

    def forward(self, x: Tensor, time: Tensor, context: Tensor, skips: list[Tensor]) -> Tensor:
        """(B, C, h, w) -> (B, C', h/2, w/2); appends to `skips` for the way up"""
        for index, resnet in enumerate(self.resnets):
            x = resnet(x, time)
            if self.attentions is not None:
                x = self.attentions[index](x, context)
            skips.append(x)
        for downsample in self.downsamplers or ():
            x = downsample(x)
            skips.append(x)
        return x


class MidBlock(nn.Module):
    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        width = config.block_out_channels[-1]
        self.resnets = residual_blocks(config, [width, width], width)
        self.attentions = transformers(config, level=-1, count=1)

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)"""
        x = self.attentions[0](self.resnets[0](x, time), context)
        return self.resnets[1](x, time)


class UpBlock(nn.Module):
    def __init__(self, config: UNetConfig, level: int, in_channels: Sequence[int], up: Upsample | None) -> None:
        super().__init__()
        self.resnets = residual_blocks(config, in_channels, config.block_out_channels[level])
        self.attentions = transformers(config, level, len(in_channels)) if config.attention[level] else None
        self.upsamplers = nn.ModuleList([up]) if up else None

    def forward(self, x: Tensor, time: Tensor, context: Tensor, skips: list[Tensor]) -> Tensor:
        """(B, C, h, w) -> (B, C', 2h, 2w); takes its inputs from the end of `skips`"""
        for index, resnet in enumerate(self.resnets):
            x = resnet(torch.cat([x, skips.pop()], dim=1), time)
            if self.attentions is not None:
                x = self.attentions[index](x, context)
        for upsample in self.upsamplers or ():
            x = upsample(x, size=skips[-1].shape[2:])  # the skip's size: sides need not be multiples of 2
        return x
