"""Strict loading: each way in which a folder can be wrong, named."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from darkroom.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from darkroom.models.unet import UNet2DConditionModel
from darkroom.models.weights import CONFIG_FILE, WEIGHTS_FILE, load_model, save_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(small_vae(), tmp_path)
    return tmp_path


def small_vae() -> AutoencoderKL:
    vae = AutoencoderKL(AutoencoderKLConfig(block_out_channels=(4, 8), norm_num_groups=2))
    vae.initialise(0)
    return vae


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(folder: Path, *, remove: str = "", **changes: Tensor) -> None:
    weights = load_file(folder / WEIGHTS_FILE) | changes
    save_file({key: value for key, value in weights.items() if key != remove}, folder / WEIGHTS_FILE)


def test_a_saved_model_loads_with_the_same_weights_and_configuration(folder: Path) -> None:
    loaded = load_model(AutoencoderKL, str(folder))
    assert loaded.config == small_vae().config
    torch.testing.assert_close(loaded.state_dict(), small_vae().state_dict(), rtol=0, atol=0)
    assert not loaded.training


def test_the_weights_say_that_they_are_pytorchs_as_those_of_diffusers_do(folder: Path) -> None:
    with safe_open(folder / WEIGHTS_FILE, "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_saving_twice_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    save_model(load_model(AutoencoderKL, folder), tmp_path / "again")
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_loading_leaves_the_global_generator_alone(folder: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    load_model(AutoencoderKL, folder)
    torch.testing.assert_close(torch.rand(1), expected, rtol=0, atol=0)


def test_half_precision_weights_become_fp32_parameters_that_train(folder: Path) -> None:
    half = {key: value.half() for key, value in load_file(folder / WEIGHTS_FILE).items()}
    save_file(half, folder / WEIGHTS_FILE)
    parameters = list(load_model(AutoencoderKL, folder).parameters())
    assert {parameter.dtype for parameter in parameters} == {torch.float32}
    assert all(parameter.requires_grad for parameter in parameters)


@torch.no_grad()
def test_the_attention_names_of_old_stable_diffusion_folders_load(folder: Path) -> None:
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    weights = {}
    for key, value in load_file(folder / WEIGHTS_FILE).items():
        name = next((key.replace(new, name) for new, name in old.items() if new in key), key)
        weights[name] = value
    assert "encoder.mid_block.attentions.0.proj_attn.weight" in weights
    save_file(weights, folder / WEIGHTS_FILE)
    torch.testing.assert_close(load_model(AutoencoderKL, folder).state_dict(), small_vae().state_dict(), rtol=0, atol=0)


def test_a_missing_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json is missing: .* is not a model folder"):
        load_model(AutoencoderKL, tmp_path)


def test_a_broken_configuration_is_named(folder: Path) -> None:
    (folder / CONFIG_FILE).write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        load_model(AutoencoderKL, folder)


def test_a_configuration_that_is_no_object_is_named(folder: Path) -> None:
    (folder / CONFIG_FILE).write_text("[]")
    with pytest.raises(ValueError, match=r"config\.json must hold a JSON object, not list"):
        load_model(AutoencoderKL, folder)


def test_the_folder_of_another_class_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"`_class_name` is 'AutoencoderKL', expected 'UNet2DConditionModel'"):
        load_model(UNet2DConditionModel, folder)


def test_a_variant_that_is_not_built_is_refused(folder: Path) -> None:
    change_config(folder, act_fn="relu")
    with pytest.raises(ValueError, match=r'`act_fn: "relu"` is not supported; expected "silu"'):
        load_model(AutoencoderKL, folder)


def test_an_unknown_configuration_key_is_refused(folder: Path) -> None:
    change_config(folder, colour="blue")
    with pytest.raises(ValueError, match=r"`colour` is unknown for AutoencoderKL"):
        load_model(AutoencoderKL, folder)


def test_fields_of_diffusers_at_their_only_value_are_accepted(folder: Path) -> None:
    change_config(folder, act_fn="silu", force_upcast=False, _diffusers_version="0.30.0", latents_mean=None)
    load_model(AutoencoderKL, folder)


def test_a_contradiction_in_the_file_names_the_file(folder: Path) -> None:
    change_config(folder, norm_num_groups=3)
    with pytest.raises(ValueError, match=r"config\.json: .*not a multiple of `norm_num_groups` \(3\)"):
        load_model(AutoencoderKL, folder)


def test_missing_weights_are_named_and_pickles_are_not_read(folder: Path) -> None:
    (folder / WEIGHTS_FILE).rename(folder / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match=r"safetensors is missing\. Weights are read from safetensors only"):
        load_model(AutoencoderKL, folder)


def test_a_damaged_weights_file_is_named(folder: Path) -> None:
    content = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"safetensors is not a readable safetensors file"):
        load_model(AutoencoderKL, folder)


def test_a_missing_tensor_is_named(folder: Path) -> None:
    change_weights(folder, remove="decoder.conv_out.bias")
    with pytest.raises(ValueError, match=r"does not fit AutoencoderKL as configured: `decoder\.conv_out\.bias` is missing\."):
        load_model(AutoencoderKL, folder)


def test_a_tensor_too_many_is_named(folder: Path) -> None:
    change_weights(folder, extra=torch.zeros(1))
    with pytest.raises(ValueError, match=r"`extra` is not a weight of this model\."):
        load_model(AutoencoderKL, folder)


def test_a_tensor_of_another_shape_is_named_with_the_number_of_problems(folder: Path) -> None:
    change_weights(folder, **{"encoder.conv_in.weight": torch.zeros(4, 1, 3, 3), "encoder.conv_in.bias": torch.zeros(5)})
    with pytest.raises(ValueError, match=r"`encoder\.conv_in\.weight` has shape \(4, 1, 3, 3\) instead of \(4, 3, 3, 3\) \(1 more\)"):
        load_model(AutoencoderKL, folder)
