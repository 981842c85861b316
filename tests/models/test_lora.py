"""LoRA against peft's definition and against diffusers (an oracle, for tests only), which must read our file."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from darkroom.models.lora import DIFFUSERS_FILE, KOHYA_FILE, add_lora, merge_lora, save_lora
from darkroom.models.unet import UNet2DConditionModel, UNetConfig
from darkroom.models.weights import save_model

CONFIG = {
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
    "sample_size": 8,
}
INPUTS = (torch.linspace(-1, 1, 512).reshape(2, 4, 8, 8), torch.tensor([3, 500]), torch.linspace(-1, 1, 120).reshape(2, 5, 12).sin())


def a_unet(**changes: Any) -> UNet2DConditionModel:
    """With no weight at 0."""
    unet = UNet2DConditionModel(UNetConfig(**CONFIG | changes))
    generator = torch.Generator().manual_seed(0)
    for parameter in unet.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return unet.eval()


def trained(net: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}


def draw_adapter(net: nn.Module) -> None:
    """As if it had been trained."""
    generator = torch.Generator().manual_seed(1)
    for parameter in trained(net).values():
        nn.init.normal_(parameter, std=0.2, generator=generator)


@torch.no_grad()
def output(net: nn.Module) -> Tensor:
    out = net(*INPUTS)
    return out if isinstance(out, Tensor) else out.sample


@pytest.mark.parametrize("conv", [False, True])
def test_lora_changes_nothing_before_the_first_step(conv):
    unet = a_unet()
    before = output(unet)
    add_lora(unet, rank=2, alpha=6, conv=conv, seed=0)
    torch.testing.assert_close(output(unet), before, rtol=0, atol=0)


@pytest.mark.parametrize("conv", [False, True])
def test_only_the_matrices_beside_attention_and_if_asked_convolutions_get_gradients(conv):
    unet = a_unet()
    frozen = set(unet.state_dict())
    add_lora(unet, rank=2, alpha=2, conv=conv, seed=0)
    unet(*INPUTS).sum().backward()
    with_gradient = {name for name, parameter in unet.named_parameters() if parameter.grad is not None}
    assert with_gradient == set(trained(unet))
    layers = {name.partition(".lora_")[0] for name in with_gradient}
    attention = {name.removesuffix(".weight") for name in frozen if ".attn" in name and name.endswith(".weight")}
    blocks = {name.removesuffix(".weight") for name in frozen if "conv" in name.split(".")[-2] and ".weight" in name}
    assert len(attention) == 4 * 2 * 4  # four projections, two attentions, four transformers
    assert layers == attention | (blocks - {"conv_in", "conv_out", "conv_norm_out"} if conv else set())


def test_an_adapted_layer_computes_wx_plus_alpha_over_rank_bax():
    unet = a_unet()
    add_lora(unet, rank=2, alpha=6, conv=True, seed=0)
    draw_adapter(unet)
    block = unet.get_submodule("down_blocks.1")
    projection = block.get_submodule("attentions.0.transformer_blocks.0.attn1.to_q")
    tokens = torch.linspace(-1, 1, 64).reshape(4, 16)
    down, up = (projection.get_parameter(f"lora_{letter}.default.weight") for letter in "AB")
    expected = tokens @ projection.get_parameter("base_layer.weight").T + 3 * (tokens @ down.T) @ up.T
    torch.testing.assert_close(projection(tokens), expected)
    conv = block.get_submodule("resnets.0.conv1")
    pixels = torch.linspace(-1, 1, 8 * 25).reshape(1, 8, 5, 5).cos()
    down, up = (conv.get_parameter(f"lora_{letter}.default.weight") for letter in "AB")
    product = torch.einsum("or,rikl->oikl", up.flatten(1), down)  # one convolution with B A for a kernel
    kernel = conv.get_parameter("base_layer.weight") + 3 * product
    torch.testing.assert_close(conv(pixels), nn.functional.conv2d(pixels, kernel, conv.get_parameter("base_layer.bias"), padding=1))


def test_a_merged_unet_computes_the_same_and_has_its_old_names():
    unet = a_unet()
    names = list(unet.state_dict())
    plain = output(unet)
    add_lora(unet, rank=3, alpha=6, conv=True, seed=0)
    draw_adapter(unet)
    adapted = output(unet)
    assert (adapted - plain).abs().max() > 0.01
    merge_lora(unet)
    torch.testing.assert_close(output(unet), adapted, rtol=1e-5, atol=1e-5)
    assert list(unet.state_dict()) == names
    assert not hasattr(unet, "peft_config")
    assert len(trained(unet)) == len(names)
    add_lora(unet, rank=2, alpha=2, conv=False, seed=0)  # may be adapted again


def test_the_first_matrices_depend_on_the_seed_alone():
    drawn = []
    for seed in (0, 0, 1):
        unet = a_unet()
        torch.rand(1)
        before = torch.get_rng_state()
        add_lora(unet, rank=2, alpha=2, conv=False, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        drawn.append({name: parameter for name, parameter in trained(unet).items() if "lora_A" in name})
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])
    assert not any(torch.equal(drawn[0][name], drawn[2][name]) for name in drawn[0])


@pytest.fixture(params=[False, True], ids=["attention", "convolutions"])
def adapted(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[UNet2DConditionModel, Path, Path]:
    """Our merged U-Net, the folder of the one it came from, and that of the adapter; alpha is not the rank."""
    unet = a_unet()
    save_model(unet, tmp_path / "unet")
    add_lora(unet, rank=2, alpha=6, conv=request.param, seed=0)
    draw_adapter(unet)
    save_lora(unet, tmp_path / "lora")
    merge_lora(unet)
    return unet, tmp_path / "unet", tmp_path / "lora"


def assert_same(theirs: nn.Module, ours: UNet2DConditionModel) -> None:
    expected, actual = output(ours), output(theirs)
    assert ((actual - expected).norm() / expected.norm()).item() < 1e-4


def test_diffusers_with_our_file_computes_what_our_merged_unet_computes(adapted):
    import diffusers

    ours, base, lora = adapted
    theirs = diffusers.UNet2DConditionModel.from_pretrained(base)
    plain = copy.deepcopy(theirs)
    theirs.load_lora_adapter(load_file(lora / DIFFUSERS_FILE), prefix="unet")
    assert_same(theirs, ours)
    with pytest.raises(AssertionError):
        assert_same(plain, ours)


@pytest.mark.parametrize("file", [DIFFUSERS_FILE, KOHYA_FILE])
def test_a_diffusers_pipeline_takes_both_files(adapted, file):
    import diffusers

    ours, base, lora = adapted
    theirs = diffusers.UNet2DConditionModel.from_pretrained(base)
    mixin = diffusers.loaders.StableDiffusionLoraLoaderMixin
    state, alphas = mixin.lora_state_dict(lora, weight_name=file)  # these two lines are what pipeline.load_lora_weights does for a U-Net
    mixin.load_lora_into_unet(state, network_alphas=alphas, unet=theirs)
    assert_same(theirs, ours)


def test_the_file_for_single_file_tools_names_each_layer_as_they_do(adapted):
    lora = adapted[2]
    weights = load_file(lora / KOHYA_FILE)
    rank = 2  # of the fixture
    name = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_out_0"
    assert weights[f"{name}.lora_down.weight"].shape == (rank, 16)
    assert weights[f"{name}.lora_up.weight"].shape == (16, rank)
    assert weights[f"{name}.alpha"].item() == rank
    assert len(weights) == 3 * len({key.partition(".")[0] for key in weights})
