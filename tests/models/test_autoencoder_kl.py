"""The autoencoder against diffusers' (an oracle, for tests only) and against its own promises."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from darkroom.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from darkroom.models.weights import load_model, save_model

SMALL = {"block_out_channels": [8, 16, 16], "layers_per_block": 2, "norm_num_groups": 4, "latent_channels": 3}


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


def ours(seed: int = 0, **changes: object) -> AutoencoderKL:
    vae = AutoencoderKL(AutoencoderKLConfig(**(SMALL | changes)))
    vae.initialise(seed)
    return vae


def diffusers_vae(**changes: object) -> torch.nn.Module:
    diffusers = pytest.importorskip("diffusers")
    levels = len(SMALL["block_out_channels"])
    kinds = {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels}
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(**(SMALL | kinds | changes)).eval()


@pytest.mark.parametrize(
    "changes",
    [{}, {"mid_block_add_attention": False}, {"use_quant_conv": False, "use_post_quant_conv": False}, {"layers_per_block": 1}],
    ids=["attention", "no-attention", "no-quant-convs", "one-layer"],
)
@torch.no_grad()
def test_same_weights_encode_and_decode_as_in_diffusers(tmp_path: Path, changes: dict[str, object]) -> None:
    oracle = diffusers_vae(**changes)
    oracle.save_pretrained(tmp_path)
    vae = load_model(AutoencoderKL, tmp_path)
    images, raw = torch.randn(2, 3, 16, 24), torch.randn(2, 3, 4, 6)
    posterior = oracle.encode(images).latent_dist
    mean, std = vae.encode(images)
    assert relative_error(mean, posterior.mean) <= 1e-4
    assert relative_error(std, posterior.std) <= 1e-4
    assert relative_error(vae.decode(raw), oracle.decode(raw).sample) <= 1e-4


@torch.no_grad()
def test_diffusers_loads_what_we_save(tmp_path: Path) -> None:
    vae = ours(shift_factor=0.25, scaling_factor=0.5)
    torch.nn.init.normal_(vae.decoder.mid_block.attentions[0].to_q.weight)
    save_model(vae, tmp_path)
    oracle = pytest.importorskip("diffusers").AutoencoderKL.from_pretrained(tmp_path)
    assert (oracle.config.scaling_factor, oracle.config.shift_factor) == (0.5, 0.25)
    raw = torch.randn(1, 3, 4, 4)
    assert relative_error(oracle.decode(raw).sample, vae.decode(raw)) <= 1e-4


def test_the_published_stable_diffusion_configuration_gives_its_84_million_parameters() -> None:
    published = {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.6.0",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 512,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }
    config = AutoencoderKLConfig.from_json(published, "here")
    with torch.device("meta"):
        vae = AutoencoderKL(config)
    assert sum(parameter.numel() for parameter in vae.parameters()) == 83_653_863
    assert (config.stride, config.scaling_factor, config.shift_factor) == (8, 0.18215, None)


def test_forward_decodes_mean_plus_std_times_noise() -> None:
    vae, images, noise = ours(), torch.randn(2, 3, 8, 8), torch.randn(2, 3, 2, 2)
    mean, std = vae.encode(images)
    reconstruction, forward_mean, logvar = vae(images, noise)
    torch.testing.assert_close(reconstruction, vae.decode(mean + std * noise))
    torch.testing.assert_close(forward_mean, mean)
    torch.testing.assert_close(torch.exp(logvar / 2), std)


def test_reconstruct_decodes_the_mean() -> None:
    vae, images = ours(), torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(vae.reconstruct(images), vae.decode(vae.encode(images)[0]))


def test_forward_uses_every_parameter() -> None:  # else DistributedDataParallel waits for gradients that never come
    vae = ours()
    sum(part.square().sum() for part in vae(torch.randn(1, 3, 8, 8), torch.randn(1, 3, 2, 2))).backward()
    assert [name for name, parameter in vae.named_parameters() if parameter.grad is None] == []


def test_normalise_gives_unit_variance_with_measured_numbers_and_denormalise_undoes_it() -> None:
    raw = 3 * torch.randn(10_000, dtype=torch.float64) + 7
    vae = ours()
    vae.config = dataclasses.replace(vae.config, scaling_factor=1 / 3, shift_factor=7.0)
    latents = vae.normalise(raw)
    assert latents.mean().abs() < 0.05
    assert abs(latents.std() - 1) < 0.05
    torch.testing.assert_close(vae.denormalise(latents), raw)


def test_without_a_shift_the_scale_alone_is_applied() -> None:
    vae = ours(scaling_factor=0.5)
    torch.testing.assert_close(vae.normalise(torch.ones(1)), torch.tensor([0.5]))
    torch.testing.assert_close(vae.denormalise(torch.ones(1)), torch.tensor([2.0]))


def test_an_extreme_log_variance_stays_finite() -> None:
    vae = ours(use_quant_conv=False)
    torch.nn.init.constant_(vae.encoder.conv_out.bias, 1e6)
    _, std = vae.encode(torch.zeros(1, 3, 8, 8))
    torch.testing.assert_close(std, torch.full_like(std, torch.e**10))


def test_initial_weights_depend_on_the_seed_alone() -> None:
    state = torch.random.get_rng_state()
    first, again, other = ours(seed=1), ours(seed=1), ours(seed=2)
    torch.testing.assert_close(first.state_dict(), again.state_dict(), rtol=0, atol=0)
    assert not torch.equal(first.encoder.conv_in.weight, other.encoder.conv_in.weight)
    torch.random.set_rng_state(state)
    expected = torch.rand(1)
    torch.random.set_rng_state(state)
    first.initialise(5)
    torch.testing.assert_close(torch.rand(1), expected)  # the global generator was left alone


def test_new_residual_blocks_are_the_identity_but_for_a_constant() -> None:
    block = ours().encoder.mid_block.resnets[0]
    x = torch.randn(2, 16, 4, 4)
    torch.testing.assert_close(block(x) - x, block.conv2.bias.view(1, -1, 1, 1).expand_as(x), atol=1e-6, rtol=0)


def test_bfloat16_autocast_stays_close_and_gives_fp32_moments() -> None:
    vae, images = ours(), torch.randn(2, 3, 16, 16)
    expected, _ = vae.encode(images)
    with torch.autocast("cpu", torch.bfloat16):
        mean, std = vae.encode(images)
        decoded = vae.decode(mean)
    assert mean.dtype == std.dtype == torch.float32
    assert relative_error(mean, expected) < 0.05
    assert decoded.isfinite().all()


def test_a_picture_that_the_stride_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"18x16 px .* multiples of 4"):
        ours().encode(torch.zeros(1, 3, 16, 18))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_out_channels": [8, 10]}, r"has 10, not a multiple of `norm_num_groups` \(4\)"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"] * 3}, r"`down_block_types` must be 3 times 'DownEncoderBlock2D'"),
        ({"up_block_types": ["UpDecoderBlock2D"]}, r"`up_block_types` must be 3 times 'UpDecoderBlock2D'"),
    ],
)
def test_a_configuration_that_contradicts_itself_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoencoderKLConfig(**(SMALL | changes))
