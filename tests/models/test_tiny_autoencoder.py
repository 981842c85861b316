"""Tiny autoencoders against diffusers' (an oracle, for tests only), against published weights and against their own promises."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from darkroom.models.layers import reset_parameters
from darkroom.models.tiny_autoencoder import TinyAutoencoder, TinyAutoencoderConfig, load_taesd
from darkroom.models.weights import load_model, save_model
from darkroom.pixels import to_float

SMALL = {
    "encoder_block_out_channels": [8, 8, 8],
    "decoder_block_out_channels": [16, 16, 16],
    "num_encoder_blocks": [1, 2, 1],
    "num_decoder_blocks": [2, 1, 1],
}
VARIANTS = {"published": {}, "16-channels": {"latent_channels": 16}, "small": SMALL}
POOLED = {**SMALL, "use_midblock_gn": True}


def ours(**changes: object) -> TinyAutoencoder:
    vae = TinyAutoencoder(TinyAutoencoderConfig(**changes))
    reset_parameters(vae, seed=0)
    return vae.eval()


def diffusers_vae(**changes: object) -> nn.Module:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    return diffusers.AutoencoderTiny(**changes).eval()


def as_taesd(vae: nn.Module, prefix: Path) -> None:
    """Write the weights of ours or of diffusers' as taesd.py names them, where the soft clamp is layer 0 of the decoder."""
    for part, offset in (("encoder", 0), ("decoder", 1)):
        weights = {}
        for name, value in getattr(vae, part).layers.state_dict().items():
            number, _, rest = name.partition(".")
            weights[f"{int(number) + offset}.{rest}"] = value.half()
        save_file(weights, f"{prefix}_{part}.safetensors")


def change_file(path: Path, change: dict[str, Tensor | None]) -> None:
    """Replace tensors of a file; None removes one."""
    weights = load_file(path) | change
    save_file({name: value for name, value in weights.items() if value is not None}, path)


def same_outputs(vae: TinyAutoencoder, oracle: nn.Module) -> None:
    images, raw = torch.randn(2, 3, 16, 24), torch.randn(2, vae.config.latent_channels, 4, 6)
    torch.testing.assert_close(vae.encode(images)[0], oracle.encode(images).latents, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(vae.decode(raw), oracle.decode(raw).sample, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
@torch.no_grad()
def test_a_folder_of_diffusers_encodes_and_decodes_as_in_diffusers(tmp_path: Path, changes: dict[str, object]) -> None:
    oracle = diffusers_vae(**changes)
    oracle.save_pretrained(tmp_path)
    same_outputs(load_model(TinyAutoencoder, tmp_path), oracle)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
@torch.no_grad()
def test_diffusers_loads_what_we_save(tmp_path: Path, changes: dict[str, object]) -> None:
    vae = ours(scaling_factor=0.5, shift_factor=0.25, **changes)
    save_model(vae, tmp_path)
    oracle, found = pytest.importorskip("diffusers").AutoencoderTiny.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(found.values())  # neither missing nor unexpected weights
    assert (oracle.config.scaling_factor, oracle.config.shift_factor) == (0.5, 0.25)
    same_outputs(vae, oracle)


def test_our_defaults_are_those_of_diffusers() -> None:
    theirs = {**diffusers_vae().config, "_class_name": "AutoencoderTiny"}
    assert TinyAutoencoderConfig.from_json(theirs, "diffusers") == TinyAutoencoderConfig()
    assert set(TinyAutoencoderConfig().to_json()) <= set(theirs)


def test_the_published_configuration_has_as_many_weights_as_its_authors_say() -> None:
    vae = ours()
    assert sum(weight.numel() for weight in vae.encoder.parameters()) == 1_222_532  # table in the README of taesd
    assert sum(weight.numel() for weight in vae.decoder.parameters()) == 1_222_531
    assert vae.config.stride == 8


@torch.no_grad()
def test_diffusers_leaves_the_weights_of_pooled_blocks_out(tmp_path: Path) -> None:
    """The docs say so; if diffusers learns them, the docs and the field's name change."""
    save_model(ours(**POOLED), tmp_path)
    _, found = pytest.importorskip("diffusers").AutoencoderTiny.from_pretrained(tmp_path, output_loading_info=True)
    assert found["unexpected_keys"]
    assert all(".pool." in name for name in found["unexpected_keys"])


@torch.no_grad()
def test_a_pooled_folder_comes_back_with_the_same_outputs(tmp_path: Path) -> None:
    vae = ours(**POOLED, sample_size=64)
    save_model(vae, tmp_path)
    again = load_model(TinyAutoencoder, tmp_path)
    assert again.config == vae.config
    assert again.fingerprint() == vae.fingerprint()
    images = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(again.reconstruct(images), vae.reconstruct(images), rtol=0, atol=0)


def test_fields_that_diffusers_lacks_are_written_only_if_set() -> None:
    plain, pooled = (TinyAutoencoderConfig(**changes).to_json() for changes in ({}, {"use_midblock_gn": True, "sample_size": 64}))
    assert set(pooled) - set(plain) == {"use_midblock_gn", "sample_size"}


def with_pool(weights: dict[str, Tensor], block: str, x: Tensor) -> Tensor:
    """A pooled block, as the formula of taesd.py."""
    of = {name.removeprefix(block): value.float() for name, value in weights.items() if name.startswith(block)}
    pooled = F.group_norm(F.conv2d(x, of["pool.0.weight"]), 4, of["pool.1.weight"], of["pool.1.bias"])
    x = x + F.conv2d(pooled.relu(), of["pool.3.weight"])
    inner = x
    for number in (0, 2, 4):
        inner = F.conv2d(inner if number == 0 else inner.relu(), of[f"conv.{number}.weight"], of[f"conv.{number}.bias"], padding=1)
    return (inner + x).relu()


@torch.no_grad()
def test_pooled_blocks_lie_at_the_coarsest_resolution_and_follow_the_formula_of_their_authors() -> None:
    vae = ours(**POOLED)
    assert {name.split(".pool.")[0] for name in vae.state_dict() if ".pool." in name} == {
        "encoder.layers.6",
        "decoder.layers.2",
        "decoder.layers.3",
    }
    block, x = vae.decoder.layers[2], torch.randn(2, 16, 4, 6)
    nn.init.normal_(block.pool[1].weight)
    torch.testing.assert_close(block(x), with_pool(block.state_dict(), "", x))


@torch.no_grad()
def test_latents_beyond_the_limit_of_the_decoder_change_almost_nothing() -> None:
    vae = ours(**SMALL)
    torch.testing.assert_close(vae.decode(torch.full((1, 4, 2, 2), 30.0)), vae.decode(torch.full((1, 4, 2, 2), 300.0)))


@pytest.mark.parametrize("changes", [{}, {"latent_channels": 16}, SMALL], ids=["published", "16-channels", "small"])
@torch.no_grad()
def test_files_in_the_naming_of_taesd_encode_and_decode_as_in_diffusers(tmp_path: Path, changes: dict[str, object]) -> None:
    oracle = diffusers_vae(**changes).half().float()
    as_taesd(oracle, tmp_path / "tiny")
    for where in (tmp_path, tmp_path / "tiny", str(tmp_path / "tiny")):
        vae = load_taesd(where)
        assert vae.config == TinyAutoencoderConfig(**changes)
        assert not vae.training
        assert vae.encoder.layers[0].weight.dtype == torch.float32
        same_outputs(vae, oracle)


@torch.no_grad()
def test_files_in_the_naming_of_taesd_with_pooled_blocks_are_recognised(tmp_path: Path) -> None:
    vae = ours(**POOLED)
    as_taesd(vae, tmp_path / "tiny")
    again = load_taesd(tmp_path)
    assert again.config == vae.config
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(again.reconstruct(images), vae.reconstruct(images), atol=1e-2, rtol=1e-2)  # the files are half precision


def cat_photos(shared: Path, side: int) -> Tensor:
    """20 photos, centre crops -> (20, 3, side, side) in [-1, 1]"""
    pictures = []
    for path in sorted((shared / "data" / "cats").glob("*.jpg"))[::25]:
        image = Image.open(path).convert("RGB")
        left, top, edge = (image.width - min(image.size)) // 2, (image.height - min(image.size)) // 2, min(image.size)
        cropped = image.crop((left, top, left + edge, top + edge))
        pictures.append(np.asarray(cropped.resize((side, side), Image.Resampling.LANCZOS)))
    return to_float(np.stack(pictures))


def mean_psnr(images: Tensor, others: Tensor) -> float:
    """dB of values in [-1, 1], the mean over pictures."""
    return float((10 * torch.log10(4 / (images - others.clamp(-1, 1)).square().flatten(1).mean(1))).mean())


@torch.no_grad()
def test_cat_photos_survive_a_published_autoencoder_and_the_rounding_that_its_std_stands_for(shared: Path) -> None:
    vae = load_taesd(shared / "weights" / "taef2")
    assert (vae.config.latent_channels, vae.config.stride, vae.config.use_midblock_gn) == (32, 8, True)
    images = cat_photos(shared, 128)
    mean, std = vae.encode(images)
    exact = mean_psnr(images, vae.decode(mean))
    assert exact >= 28
    assert mean_psnr(images, vae.decode(mean + std * torch.randn_like(mean))) >= exact - 0.05
    assert 0.7 < mean.std() < 1.1  # raw latents nearly have unit variance


@torch.no_grad()
def test_the_std_is_that_of_rounding_latents_to_8_bits() -> None:
    vae = ours(**SMALL, latent_magnitude=2.0)
    mean, std = vae.encode(torch.randn(1, 3, 16, 16))
    values = torch.rand(100_000, dtype=torch.float64) * 4 - 2
    rounded = torch.round((values / 4 + 0.5) * 255) / 255 * 4 - 2
    torch.testing.assert_close(std, torch.full_like(mean, float((rounded - values).std())), rtol=0.01, atol=0)
    _, logvar = vae.moments(torch.randn(1, 3, 16, 16))
    torch.testing.assert_close(logvar, 2 * std.log())


@torch.no_grad()
def test_a_training_pass_decodes_mean_plus_std_times_noise() -> None:
    vae, images, noise = ours(**SMALL), torch.randn(2, 3, 16, 16), torch.randn(2, 4, 4, 4)
    mean, std = vae.encode(images)
    reconstruction, same_mean, logvar = vae(images, noise)
    torch.testing.assert_close(reconstruction, vae.decode(mean + std * noise))
    torch.testing.assert_close((same_mean, logvar), (mean, 2 * std.log()))
    torch.testing.assert_close(vae.reconstruct(images), vae.decode(mean))


def test_normalised_latents_have_zero_mean_and_unit_variance() -> None:
    vae, raw = ours(**SMALL), torch.randn(4, 4, 32, 32) * 3 + 7
    vae.config = dataclasses.replace(vae.config, scaling_factor=1 / 3, shift_factor=7.0)
    latents = vae.normalise(raw)
    assert latents.mean().abs() < 0.05
    assert abs(latents.std() - 1) < 0.05
    torch.testing.assert_close(vae.denormalise(latents), raw)


@torch.no_grad()
def test_bfloat16_autocast_stays_close_and_gives_fp32_moments() -> None:
    vae, images = ours(**POOLED), torch.randn(2, 3, 16, 16)
    expected, _ = vae.encode(images)
    with torch.autocast("cpu", torch.bfloat16):
        mean, std = vae.encode(images)
        decoded = vae.decode(mean)
    assert mean.dtype == std.dtype == torch.float32
    assert (mean - expected).norm() / expected.norm() < 0.05
    assert decoded.isfinite().all()


def test_a_picture_that_the_stride_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"18x16 px .* multiples of 4"):
        ours(**SMALL).encode(torch.zeros(1, 3, 16, 18))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_encoder_blocks": [1, 3]}, r"`encoder_block_out_channels` and `num_encoder_blocks` must have one entry per resolution"),
        ({"decoder_block_out_channels": [], "num_decoder_blocks": []}, r"`num_decoder_blocks` must have one entry per resolution"),
        ({"decoder_block_out_channels": [64, 32, 16]}, r"`decoder_block_out_channels` is \[64, 32, 16\]: all must be the same"),
        ({"decoder_block_out_channels": [16, 16], "num_decoder_blocks": [1, 1]}, r"has 3 resolutions and `num_decoder_blocks` 2"),
        ({"block_out_channels": [64, 64, 64]}, r"`block_out_channels` must be the same as `decoder_block_out_channels`"),
        ({"latent_magnitude": 0}, r"`latent_magnitude` is 0, but must be above 0"),
    ],
)
def test_a_configuration_that_contradicts_itself_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TinyAutoencoderConfig(**(SMALL | changes))


@pytest.mark.parametrize("change", [{"act_fn": "silu"}, {"upsample_fn": "bilinear"}, {"upsampling_scaling_factor": 4}, {"latent_shift": 0}])
def test_a_variant_that_is_not_implemented_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    save_model(ours(**SMALL), tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(ValueError, match=f"`{next(iter(change))}: .* is not supported"):
        load_model(TinyAutoencoder, tmp_path)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("encoder", {"1.conv.2.bias": None}, r"encoder.safetensors \(in diffusers' names\) .* `layers.1.conv.2.bias` is missing"),
        ("decoder", {"3.conv.0.bias": None}, r"decoder.safetensors .* `layers.2.conv.0.bias` is missing"),
        ("decoder", {"note": torch.zeros(1)}, r"`note` is not a weight of this model"),
        ("encoder", {"6.pool.1.bias": torch.zeros(5)}, r"`layers.6.pool.1.bias` has shape \(5,\) instead of \(32,\)"),
        ("encoder", {"0.weight": torch.zeros(8, 3)}, r"not of a tiny autoencoder that is known"),
        ("encoder", {"7.weight": torch.zeros(6, 8, 3, 3), "7.bias": torch.zeros(6)}, r"makes 6 latent channels, but .* takes 4"),
    ],
    ids=["missing", "missing-in-decoder", "unexpected", "shape", "not-a-convolution", "other-latents"],
)
def test_damaged_files_of_taesd_are_refused(tmp_path: Path, file: str, change: dict[str, Tensor | None], message: str) -> None:
    as_taesd(ours(**POOLED), tmp_path / "tiny")
    change_file(tmp_path / f"tiny_{file}.safetensors", change)
    with pytest.raises(ValueError, match=message):
        load_taesd(tmp_path)


def test_halves_with_different_resolutions_are_refused(tmp_path: Path) -> None:
    as_taesd(ours(**SMALL), tmp_path / "tiny")
    as_taesd(ours(), tmp_path / "large")
    (tmp_path / "large_decoder.safetensors").replace(tmp_path / "tiny_decoder.safetensors")
    with pytest.raises(ValueError, match=r"tiny_encoder.safetensors and tiny_decoder.safetensors: `num_encoder_blocks` has 3 resolutions"):
        load_taesd(tmp_path / "tiny")


@pytest.mark.parametrize("names", [("fc.weight",), ("0.weight", "2.weight", "4.conv.0.weight", "5.weight")], ids=["foreign", "taesana"])
def test_another_architecture_is_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    as_taesd(ours(**SMALL), tmp_path / "tiny")
    save_file({name: torch.zeros(8, 8, 3, 3) for name in names}, tmp_path / "tiny_encoder.safetensors")
    with pytest.raises(ValueError, match=r"tiny_encoder.safetensors is not of a tiny autoencoder that is known here.*taesana is another"):
        load_taesd(tmp_path)


def test_missing_and_ambiguous_files_of_taesd_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has 0 files `\*encoder\*.safetensors` instead of one\. Give .* never read from a pickle"):
        load_taesd(tmp_path)
    for name in ("tiny", "other"):
        as_taesd(ours(**SMALL), tmp_path / name)
    with pytest.raises(ValueError, match=r"has 2 files .* \(other_encoder.safetensors, tiny_encoder.safetensors\) instead of one"):
        load_taesd(tmp_path)
    with pytest.raises(ValueError, match=r"third_encoder.safetensors is missing"):
        load_taesd(tmp_path / "third")
    (tmp_path / "tiny_decoder.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"tiny_decoder.safetensors is not a readable safetensors file"):
        load_taesd(tmp_path / "tiny")


def test_the_std_never_vanishes() -> None:
    assert TinyAutoencoderConfig().latent_std == pytest.approx(6 / 255 / math.sqrt(12))
    assert ours(**SMALL).encode(torch.zeros(1, 3, 8, 8))[1].log().isfinite().all()
