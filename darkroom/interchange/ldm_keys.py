"""Names of weights in single files: those of the latent-diffusion code, for the U-Net and the autoencoder. Both ways, bit for bit.

The latent-diffusion code numbers all blocks on the way down (or up) in one sequence; diffusers, whose names are ours, groups them
by resolution. The configuration determines the mapping between the two.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from darkroom.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from darkroom.models.unet import UNet2DConditionModel, UNetConfig
from darkroom.models.weights import empty

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."

# modules within a block: our name -> that of latent diffusion. All others have the same name.
UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_RESNET = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "conv_shortcut": "nin_shortcut"}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet_keys(config: UNetConfig) -> dict[str, str]:
    """Every weight of a U-Net: our name -> that of latent diffusion, without prefix."""
    return _keys(empty(UNet2DConditionModel, config).state_dict(), dict(_unet_modules(config)))


def vae_keys(config: AutoencoderKLConfig) -> dict[str, str]:
    """Every weight of an autoencoder: our name -> that of latent diffusion, without prefix."""
    return _keys(empty(AutoencoderKL, config).state_dict(), dict(_vae_modules(config)))


def _keys(weights: Mapping[str, Tensor], modules: Mapping[str, str]) -> dict[str, str]:
    keys = {key: _rename(key, modules) for key in weights}
    assert len(set(keys.values())) == len(keys), "two weights of one name"
    return keys


def _rename(key: str, modules: Mapping[str, str]) -> str:
    """Rename the longest module in the table that the key starts with."""
    parts = key.split(".")
    for length in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:length])
        if module in modules:
            return ".".join([modules[module], *parts[length:]])
    raise AssertionError(f"{key} is in no module of the table")


def _unet_modules(config: UNetConfig) -> Iterator[tuple[str, str]]:
    yield from (("conv_in", "input_blocks.0.0"), ("conv_norm_out", "out.0"), ("conv_out", "out.2"))
    yield from (("time_embedding.linear_1", "time_embed.0"), ("time_embedding.linear_2", "time_embed.2"))
    levels, layers = len(config.block_out_channels), config.layers_per_block
    for level in range(levels):
        first = 1 + level * (layers + 1)
        for layer in range(layers):
            yield from _inside(f"down_blocks.{level}.resnets.{layer}", f"input_blocks.{first + layer}.0", UNET_RESNET)
            yield f"down_blocks.{level}.attentions.{layer}", f"input_blocks.{first + layer}.1"
        yield f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{first + layers}.0.op"
    yield from _inside("mid_block.resnets.0", "middle_block.0", UNET_RESNET)
    yield "mid_block.attentions.0", "middle_block.1"
    yield from _inside("mid_block.resnets.1", "middle_block.2", UNET_RESNET)
    for level, attends in enumerate(reversed(config.attention)):
        first = level * (layers + 1)
        for layer in range(layers + 1):
            yield from _inside(f"up_blocks.{level}.resnets.{layer}", f"output_blocks.{first + layer}.0", UNET_RESNET)
            yield f"up_blocks.{level}.attentions.{layer}", f"output_blocks.{first + layer}.1"
        yield f"up_blocks.{level}.upsamplers.0.conv", f"output_blocks.{first + layers}.{2 if attends else 1}.conv"


def _vae_modules(config: AutoencoderKLConfig) -> Iterator[tuple[str, str]]:
    yield from ((name, name) for name in ("quant_conv", "post_quant_conv"))
    levels, layers = len(config.block_out_channels), config.layers_per_block
    for half in ("encoder", "decoder"):
        yield from ((f"{half}.{ours}", f"{half}.{theirs}") for ours, theirs in (("conv_in", "conv_in"), ("conv_out", "conv_out")))
        yield f"{half}.conv_norm_out", f"{half}.norm_out"
        for layer in range(2):
            yield from _inside(f"{half}.mid_block.resnets.{layer}", f"{half}.mid.block_{layer + 1}", VAE_RESNET)
        yield from _inside(f"{half}.mid_block.attentions.0", f"{half}.mid.attn_1", VAE_ATTENTION)
    for level in range(levels):
        for layer in range(layers):
            yield from _inside(f"encoder.down_blocks.{level}.resnets.{layer}", f"encoder.down.{level}.block.{layer}", VAE_RESNET)
        yield f"encoder.down_blocks.{level}.downsamplers.0.conv", f"encoder.down.{level}.downsample.conv"
        up = levels - 1 - level  # latent diffusion numbers the resolutions of the decoder from the finest, too
        for layer in range(layers + 1):
            yield from _inside(f"decoder.up_blocks.{level}.resnets.{layer}", f"decoder.up.{up}.block.{layer}", VAE_RESNET)
        yield f"decoder.up_blocks.{level}.upsamplers.0.conv", f"decoder.up.{up}.upsample.conv"


def _inside(ours: str, theirs: str, names: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    return ((f"{ours}.{name}", f"{theirs}.{other}") for name, other in names.items())


def unet_to_ldm(config: UNetConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights with the names of a single file, including the prefix."""
    return {f"{UNET_PREFIX}{name}": weights[key] for key, name in unet_keys(config).items()}


def unet_from_ldm(config: UNetConfig, weights: Mapping[str, Tensor], *, where: Path | str) -> dict[str, Tensor]:
    """The U-Net of a single file with our names.

    Raises:
        ValueError: a weight with the prefix of the U-Net is missing or unexpected.
    """
    return _take(unet_keys(config), weights, UNET_PREFIX, where)


def vae_to_ldm(config: AutoencoderKLConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights with the names of a single file, including the prefix. The projections of its attention are convolutions there."""
    named = {f"{VAE_PREFIX}{name}": weights[key] for key, name in vae_keys(config).items()}
    return {name: value[:, :, None, None] if ".attn_1." in name and value.ndim == 2 else value for name, value in named.items()}


def vae_from_ldm(config: AutoencoderKLConfig, weights: Mapping[str, Tensor], *, where: Path | str) -> dict[str, Tensor]:
    """The autoencoder of a single file with our names.

    Raises:
        ValueError: a weight with the prefix of the autoencoder is missing or unexpected.
    """
    found = _take(vae_keys(config), weights, VAE_PREFIX, where)
    return {key: value[:, :, 0, 0] if ".attentions.0." in key and value.ndim == 4 else value for key, value in found.items()}


def _take(keys: Mapping[str, str], weights: Mapping[str, Tensor], prefix: str, where: Path | str) -> dict[str, Tensor]:
    names = {prefix + name for name in keys.values()}
    if missing := sorted(names - set(weights)):
        raise ValueError(f"{where}: `{missing[0]}` is missing ({len(missing)} in total).")
    if unexpected := sorted(name for name in weights if name.startswith(prefix) and name not in names):
        raise ValueError(f"{where}: `{unexpected[0]}` is not a weight of this architecture ({len(unexpected)} in total).")
    return {key: weights[prefix + name] for key, name in keys.items()}
