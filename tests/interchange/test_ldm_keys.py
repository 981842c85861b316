"""Names in single files, against diffusers' own conversion of the true architectures; without weights, so that they cost nothing."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from darkroom.interchange.ldm_keys import unet_from_ldm, unet_keys, unet_to_ldm, vae_from_ldm, vae_keys, vae_to_ldm
from darkroom.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from darkroom.models.unet import UNet2DConditionModel, UNetConfig
from darkroom.models.weights import ModelConfig, StoredModel, empty

UNETS = {
    "1.5": UNetConfig(cross_attention_dim=768),
    "2.1": UNetConfig(cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True),
    "one level": UNetConfig(block_out_channels=(32,), down_block_types=("CrossAttnDownBlock2D",), layers_per_block=1),
    "no attention": UNetConfig(block_out_channels=(32, 64), down_block_types=("DownBlock2D",) * 2, layers_per_block=3),
    "attention below": UNetConfig(
        block_out_channels=(32, 64), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), layers_per_block=1
    ),
}
VAES = {
    "1.5": AutoencoderKLConfig(block_out_channels=(128, 256, 512, 512), layers_per_block=2),
    "one level": AutoencoderKLConfig(block_out_channels=(32,)),
    "plain": AutoencoderKLConfig(
        block_out_channels=(32, 64), use_quant_conv=False, use_post_quant_conv=False, mid_block_add_attention=False
    ),
}


def numbered(cls: type[StoredModel], config: ModelConfig) -> dict[str, Tensor]:
    """Weights of the right shapes that do not take memory, each with a number of its own."""
    shapes = empty(cls, config).state_dict()
    return {key: torch.tensor(float(number)).expand(value.shape) for number, (key, value) in enumerate(shapes.items())}


def assert_same(found: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
    """Compares one value of each, because all are equal and there are hundreds of millions."""
    described = [{key: (value.shape, float(value[(0,) * value.ndim])) for key, value in table.items()} for table in (found, weights)]
    assert described[0] == described[1]


def conversion() -> Any:
    return pytest.importorskip("diffusers.loaders.single_file_utils")


@pytest.mark.parametrize("name", UNETS)
def test_diffusers_reads_our_names_of_a_unet_as_the_weights_that_we_mean(name: str) -> None:
    config = UNETS[name]
    weights = numbered(UNet2DConditionModel, config)
    theirs = conversion().convert_ldm_unet_checkpoint(unet_to_ldm(config, weights), config.to_json())
    assert_same(theirs, weights)


@pytest.mark.parametrize("name", VAES)
def test_diffusers_reads_our_names_of_an_autoencoder_as_the_weights_that_we_mean(name: str) -> None:
    config = VAES[name]
    weights = numbered(AutoencoderKL, config)
    theirs = conversion().convert_ldm_vae_checkpoint(vae_to_ldm(config, weights), config.to_json())
    assert_same(theirs, weights)


def test_stable_diffusion_has_as_many_weights_as_it_is_known_to_have() -> None:
    """And the names in which programs look for its versions."""
    names = unet_keys(UNETS["1.5"]).values()
    assert (len(names), len(set(names))) == (686, 686)
    markers = ("output_blocks.11.0.skip_connection.weight", "input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight")
    assert {name for name in names if name.endswith((".op.bias", ".conv.bias"))} == {
        *(f"input_blocks.{index}.0.op.bias" for index in (3, 6, 9)),
        *(f"output_blocks.{index}.conv.bias" for index in ("2.1", "5.2", "8.2")),  # the lowest level does not attend
    }
    assert {"input_blocks.0.0.weight", "time_embed.2.bias", "middle_block.1.proj_in.weight", "out.2.weight", *markers} <= set(names)
    assert {"encoder.down.2.downsample.conv.weight", "decoder.up.3.upsample.conv.bias", "decoder.mid.attn_1.proj_out.weight"} <= set(
        vae_keys(VAES["1.5"]).values()
    )
    assert len(vae_keys(VAES["1.5"])) == 248


@pytest.mark.parametrize("name", UNETS)
def test_a_unet_comes_back_as_it_went(name: str) -> None:
    weights = numbered(UNet2DConditionModel, UNETS[name])
    back = unet_from_ldm(UNETS[name], unet_to_ldm(UNETS[name], weights), where="a file")
    assert_same(back, weights)


@pytest.mark.parametrize("name", VAES)
def test_an_autoencoder_comes_back_as_it_went(name: str) -> None:
    weights = numbered(AutoencoderKL, VAES[name])
    back = vae_from_ldm(VAES[name], vae_to_ldm(VAES[name], weights), where="a file")
    assert_same(back, weights)


def test_attention_of_the_autoencoder_is_stored_as_convolutions() -> None:
    weights = vae_to_ldm(VAES["one level"], numbered(AutoencoderKL, VAES["one level"]))
    assert weights["first_stage_model.encoder.mid.attn_1.q.weight"].shape == (32, 32, 1, 1)
    assert weights["first_stage_model.encoder.mid.attn_1.norm.weight"].shape == (32,)


def test_missing_and_strange_weights_are_named_as_the_file_has_them() -> None:
    config = dataclasses.replace(UNETS["one level"])
    weights = unet_to_ldm(config, numbered(UNet2DConditionModel, config))
    value = weights.pop("model.diffusion_model.middle_block.0.emb_layers.1.bias")
    with pytest.raises(ValueError, match=r"`model\.diffusion_model\.middle_block\.0\.emb_layers\.1\.bias` is missing \(1 in total\)"):
        unet_from_ldm(config, weights, where="a file")
    weights["model.diffusion_model.middle_block.0.emb_layers.1.bias"] = value
    weights["model.diffusion_model.middle_block.9.weight"] = value
    with pytest.raises(
        ValueError, match=r"`model\.diffusion_model\.middle_block\.9\.weight` is not a weight of this architecture \(1 in total\)"
    ):
        unet_from_ldm(config, weights, where="a file")
