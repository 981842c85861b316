"""The U-Net against diffusers' (an oracle, for tests only) and against its own promises."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from darkroom.models.unet import UNet2DConditionModel, UNetConfig
from darkroom.models.weights import load_model, save_model

TINY: dict[str, Any] = {
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
}
# Stable Diffusion's own shapes with fewer channels: everything that is not width is as published.
SD1: dict[str, Any] = {"block_out_channels": [32, 64, 128, 128], "norm_num_groups": 32, "cross_attention_dim": 24, "attention_head_dim": 8}
SD2: dict[str, Any] = SD1 | {"attention_head_dim": [2, 4, 8, 8], "use_linear_projection": True, "upcast_attention": True}
SD1_CONFIG_JSON = {  # of the published v1.5, all of it
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}
SD2_CHANGES = {  # of the published v2.1
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "dual_cross_attention": False,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "sample_size": 96,
    "upcast_attention": True,
    "use_linear_projection": True,
}
CONVERTED_CHANGES = {  # of folders that diffusers' script made of single files
    "addition_embed_type": None,
    "class_embed_type": None,
    "projection_class_embeddings_input_dim": None,
    "resnet_out_scale_factor": 1.0,
    "transformer_layers_per_block": 1,
    "upcast_attention": None,
    "use_linear_projection": False,
}


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


def diffusers_unet(config: dict[str, Any]) -> torch.nn.Module:
    torch.manual_seed(0)
    return pytest.importorskip("diffusers").UNet2DConditionModel(**config).eval()


def inputs(config: dict[str, Any], side: tuple[int, int] = (16, 8)) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, config.get("in_channels", 4), *side, generator=generator)
    return x, torch.tensor([3, 977]), torch.randn(2, 5, config["cross_attention_dim"], generator=generator)


@pytest.mark.parametrize(
    "config",
    [TINY, TINY | {"flip_sin_to_cos": False, "freq_shift": 1}, TINY | {"norm_eps": 1e-2, "in_channels": 9}, SD1, SD2],
    ids=["tiny", "sine-first", "eps-and-inpainting-channels", "sd1", "sd2"],
)
@torch.no_grad()
def test_same_weights_predict_as_in_diffusers(tmp_path: Path, config: dict[str, Any]) -> None:
    oracle = diffusers_unet(config)
    oracle.save_pretrained(tmp_path)
    unet = load_model(UNet2DConditionModel, tmp_path)
    x, timesteps, context = inputs(config)
    assert relative_error(unet(x, timesteps, context), oracle(x, timesteps, context).sample) <= 1e-4


@torch.no_grad()
def test_sides_that_are_no_power_of_two_predict_as_in_diffusers(tmp_path: Path) -> None:
    oracle = diffusers_unet(SD1)
    oracle.save_pretrained(tmp_path)
    x, timesteps, context = inputs(SD1, side=(13, 10))
    assert relative_error(load_model(UNet2DConditionModel, tmp_path)(x, timesteps, context), oracle(x, timesteps, context).sample) <= 1e-4


@torch.no_grad()
def test_fractional_timesteps_predict_as_in_diffusers(tmp_path: Path) -> None:
    oracle = diffusers_unet(TINY)
    oracle.save_pretrained(tmp_path)
    x, _, context = inputs(TINY)
    timesteps = torch.tensor([0.25, 977.5])
    assert relative_error(load_model(UNet2DConditionModel, tmp_path)(x, timesteps, context), oracle(x, timesteps, context).sample) <= 1e-4


@pytest.mark.parametrize("config", [TINY, SD2], ids=["tiny", "sd2"])
@torch.no_grad()
def test_diffusers_loads_what_we_save(tmp_path: Path, config: dict[str, Any]) -> None:
    unet = UNet2DConditionModel(UNetConfig.from_json({"_class_name": "UNet2DConditionModel", **config}, "here"))
    save_model(unet, tmp_path)
    oracle = pytest.importorskip("diffusers").UNet2DConditionModel.from_pretrained(tmp_path)
    x, timesteps, context = inputs(config)
    assert relative_error(oracle(x, timesteps, context).sample, unet(x, timesteps, context)) <= 1e-4


@pytest.mark.parametrize(
    ("changes", "parameters"),
    [({}, 859_520_964), (SD2_CHANGES, 865_910_724), (CONVERTED_CHANGES, 859_520_964)],
    ids=["1.5", "2.1", "1.5 converted"],
)
def test_the_published_stable_diffusion_configurations_give_their_numbers_of_parameters(changes: dict[str, Any], parameters: int) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(UNetConfig.from_json(SD1_CONFIG_JSON | changes, "here"))
    assert sum(parameter.numel() for parameter in unet.parameters()) == parameters


def test_from_levels_speaks_of_channels_a_head() -> None:
    config = UNetConfig.from_levels(
        block_out_channels=[16, 32],
        attention=[False, True],
        layers_per_block=1,
        channels_per_head=8,
        norm_num_groups=8,
        latent_channels=3,
        latent_size=4,
        context_dim=10,
    )
    assert config.heads == (2, 4)
    assert config.down_block_types == ("DownBlock2D", "CrossAttnDownBlock2D")
    assert config.up_block_types == ("CrossAttnUpBlock2D", "UpBlock2D")
    unet = UNet2DConditionModel(config)
    assert unet.up_blocks[0].attentions[0].transformer_blocks[0].attn1.heads == 4
    assert unet(torch.zeros(2, 3, 4, 4), torch.zeros(2), torch.zeros(2, 6, 10)).shape == (2, 3, 4, 4)


def test_a_new_unet_predicts_zero_and_every_weight_learns() -> None:
    unet = UNet2DConditionModel(UNetConfig(**TINY))
    unet.initialise(0)
    x, timesteps, context = inputs(TINY)
    assert not unet(x, timesteps, context).any()
    optimizer = torch.optim.SGD(unet.parameters(), lr=0.1)
    for _ in range(4):  # one step for each layer of zeros on the way from the loss to a weight, and one more
        optimizer.zero_grad()
        (unet(x, timesteps, context) - torch.ones_like(x)).square().mean().backward()
        optimizer.step()
    assert [name for name, parameter in unet.named_parameters() if not parameter.grad.any()] == []


def test_new_transformers_are_the_identity_but_for_a_constant() -> None:
    unet = UNet2DConditionModel(UNetConfig(**TINY))
    unet.initialise(0)
    transformer, x = unet.mid_block.attentions[0], torch.randn(2, 16, 4, 4)
    change = transformer(x, torch.randn(2, 5, 12)) - x
    torch.testing.assert_close(change, transformer.proj_out.bias.view(1, -1, 1, 1).expand_as(x), atol=1e-6, rtol=0)


def test_initial_weights_depend_on_the_seed_alone() -> None:
    first, again, other = (UNet2DConditionModel(UNetConfig(**TINY)) for _ in range(3))
    first.initialise(1)
    again.initialise(1)
    other.initialise(2)
    torch.testing.assert_close(first.state_dict(), again.state_dict(), rtol=0, atol=0)
    assert not torch.equal(first.conv_in.weight, other.conv_in.weight)


@pytest.mark.parametrize("bf16", [False, True])
def test_training_twice_gives_the_same_bits(bf16: bool) -> None:
    def trained() -> dict[str, Tensor]:
        unet = UNet2DConditionModel(UNetConfig(**(TINY | {"block_out_channels": [32, 64]})))
        unet.initialise(0)
        optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3)
        x, timesteps, context = inputs(TINY, side=(16, 16))
        for _ in range(4):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = (unet(x, timesteps, context) - x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return unet.state_dict()

    torch.testing.assert_close(trained(), trained(), rtol=0, atol=0)


def test_the_prediction_depends_on_the_caption_and_on_the_timestep() -> None:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(UNetConfig(**TINY))
    x, timesteps, context = inputs(TINY)
    prediction = unet(x, timesteps, context)
    assert relative_error(unet(x, timesteps, context.flip(0)), prediction) > 1e-3
    assert relative_error(unet(x, timesteps.flip(0), context), prediction) > 1e-3


# ---- augmentation labels


LABELS = torch.tensor([[0.5, -1.0, 0.3, 1.0], [-0.7, 0.2, -0.8, 0.0]])


def learner(**changes: Any) -> UNet2DConditionModel:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(UNetConfig(**(TINY | changes)))
    unet.learn_labels(4)
    return unet


def test_a_unet_that_begins_to_learn_labels_predicts_what_it_did_before() -> None:
    torch.manual_seed(0)
    before = UNet2DConditionModel(UNetConfig(**TINY))
    state = torch.get_rng_state()
    unet = learner()
    assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn for it
    torch.testing.assert_close(unet(*inputs(TINY), LABELS), before(*inputs(TINY)), rtol=0, atol=0)
    assert set(unet.state_dict()) - set(before.state_dict()) == {"augmentation_embedding.weight"}


def test_labels_of_zero_change_nothing_and_others_do_as_a_change_of_the_embedding_of_time() -> None:
    unet = learner()
    torch.nn.init.normal_(unet.augmentation_embedding.weight)
    plain, zero, told = unet(*inputs(TINY)), unet(*inputs(TINY), torch.zeros(2, 4)), unet(*inputs(TINY), LABELS)
    torch.testing.assert_close(zero, plain, rtol=0, atol=0)
    assert relative_error(told, plain) > 1e-3
    added = LABELS @ unet.augmentation_embedding.weight.T
    unet.time_embedding.register_forward_pre_hook(lambda _, given: (given[0] + added,))
    torch.testing.assert_close(unet(*inputs(TINY)), told)


@torch.no_grad()
def test_a_unet_that_has_forgotten_its_labels_is_that_of_diffusers_and_predicts_as_with_labels_of_zero(tmp_path: Path) -> None:
    unet = learner()
    torch.nn.init.normal_(unet.augmentation_embedding.weight)
    x, timesteps, context = inputs(TINY)
    expected = unet(x, timesteps, context, torch.zeros(2, 4))
    unet.forget_labels()
    save_model(unet, tmp_path)
    assert set(unet.state_dict()) == set(UNet2DConditionModel(UNetConfig(**TINY)).state_dict())
    torch.testing.assert_close(load_model(UNet2DConditionModel, tmp_path)(x, timesteps, context), expected, rtol=0, atol=0)
    oracle = pytest.importorskip("diffusers").UNet2DConditionModel.from_pretrained(tmp_path)
    assert relative_error(oracle(x, timesteps, context).sample, expected) <= 1e-4


@pytest.mark.parametrize("told", [True, False])
def test_what_only_the_label_tells_is_learned_from_it(told: bool) -> None:
    unet = learner()
    unet.initialise(0)
    unet.learn_labels(4)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(unet.parameters(), lr=3e-3)
    losses = []
    for _ in range(150):
        x, labels = torch.randn(16, 4, 4, 4, generator=generator), torch.zeros(16, 4)
        labels[:, 0] = torch.rand(16, generator=generator) * 2 - 1
        target = labels[:, :1, None, None].expand_as(x)  # of variance 1/3
        prediction = unet(x, torch.full((16,), 500), torch.zeros(16, 5, 12), labels if told else None)
        losses.append((prediction - target).square().mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    last = torch.stack(losses[-20:]).mean().item()
    assert last < 0.05 if told else last > 0.25


def test_labels_for_a_unet_that_has_not_begun_to_learn_them_are_a_fault_of_ours() -> None:
    with pytest.raises(AssertionError, match="takes labels after `learn_labels`"):
        UNet2DConditionModel(UNetConfig(**TINY))(*inputs(TINY), LABELS)


def test_bfloat16_autocast_stays_close() -> None:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(UNetConfig(**TINY))
    x, timesteps, context = inputs(TINY)
    expected = unet(x, timesteps, context)
    with torch.autocast("cpu", torch.bfloat16):
        prediction = unet(x, timesteps, context)
    assert relative_error(prediction.float(), expected) < 0.05


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_out_channels": [8, 18]}, r"has 18, not a multiple of `norm_num_groups` \(4\)"),
        ({"attention_head_dim": 3}, r"has 8, which 3 attention heads \(`attention_head_dim`\) do not divide"),
        ({"attention_head_dim": [2]}, r"`attention_head_dim` has 1 entries, `block_out_channels` 2"),
        ({"down_block_types": ["DownBlock2D"]}, r"`down_block_types` must be 2 times CrossAttnDownBlock2D or DownBlock2D"),
        ({"down_block_types": ["AttnDownBlock2D"] * 2}, r"`down_block_types` must be 2 times"),
        ({"up_block_types": ["UpBlock2D"] * 2}, r"`up_block_types` must mirror .*'CrossAttnUpBlock2D', 'UpBlock2D'"),
    ],
)
def test_a_configuration_that_contradicts_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNetConfig(**(TINY | changes))


def test_channels_that_heads_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match=r"has 12, not a multiple of the 8 channels of an attention head"):
        UNetConfig.from_levels(
            block_out_channels=[12],
            attention=[True],
            layers_per_block=1,
            channels_per_head=8,
            norm_num_groups=4,
            latent_channels=4,
            latent_size=8,
            context_dim=8,
        )


@pytest.mark.slow
@torch.no_grad()
def test_the_full_stable_diffusion_1_shape_predicts_as_in_diffusers() -> None:
    oracle = diffusers_unet({key: value for key, value in SD1_CONFIG_JSON.items() if not key.startswith("_")})
    with torch.device("meta"):
        unet = UNet2DConditionModel(UNetConfig.from_json(SD1_CONFIG_JSON, "here"))
    unet.load_state_dict(oracle.state_dict(), assign=True)
    x, timesteps, context = torch.randn(1, 4, 32, 32), torch.tensor([500]), torch.randn(1, 77, 768)
    assert relative_error(unet(x, timesteps, context), oracle(x, timesteps, context).sample) <= 1e-4
