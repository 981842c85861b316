"""Blocks that forget and compute again: the same numbers from less memory."""

import pytest
import torch
from torch import Tensor

from darkroom.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from darkroom.models.layers import use_gradient_checkpointing
from darkroom.models.lora import add_lora
from darkroom.models.unet import UNet2DConditionModel, UNetConfig

CONFIG = UNetConfig(
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    block_out_channels=(8, 16),
    layers_per_block=1,
    norm_num_groups=4,
    cross_attention_dim=12,
    attention_head_dim=2,
)


def gradients(net: UNet2DConditionModel, *, bf16: bool = False) -> tuple[dict[str, Tensor], int]:
    """The gradient of each trained parameter, and the bytes that the forward pass leaves for the backward pass."""
    stored: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        stored[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    generator = torch.Generator().manual_seed(1)
    x, context = torch.randn(2, 4, 16, 16, generator=generator), torch.randn(2, 5, 12, generator=generator)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = net(x, torch.tensor([3, 977]), context).square().mean()
    loss.backward()
    weights = {parameter.data_ptr() for parameter in net.parameters()}
    left = sum(size for pointer, size in stored.items() if pointer not in weights)
    return {name: parameter.grad for name, parameter in net.named_parameters() if parameter.grad is not None}, left


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("lora", [False, True])
def test_the_gradients_are_the_same_and_less_is_kept_for_them(bf16: bool, lora: bool) -> None:
    results = []
    for forgetful in (False, True):
        torch.manual_seed(0)
        net = UNet2DConditionModel(CONFIG)
        if lora:
            add_lora(net, rank=2, alpha=2, conv=True, seed=0)
            for name, parameter in net.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter)
        if forgetful:
            use_gradient_checkpointing(net)
        results.append(gradients(net, bf16=bf16))
    (expected, kept), (found, kept_by_the_forgetful) = results
    assert expected
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert kept_by_the_forgetful < 0.3 * kept


def test_a_forgetful_net_draws_the_same_pictures_and_has_the_same_names() -> None:
    net = UNet2DConditionModel(CONFIG)
    names = list(net.state_dict())
    inputs = torch.randn(1, 4, 8, 8), torch.tensor([5]), torch.randn(1, 5, 12)
    with torch.no_grad():
        expected = net(*inputs)
        use_gradient_checkpointing(net)
        torch.testing.assert_close(net(*inputs), expected, rtol=0, atol=0)
    assert list(net.state_dict()) == names


def test_the_autoencoders_blocks_can_forget_too() -> None:
    found = []
    for forgetful in (False, True):
        torch.manual_seed(0)
        vae = AutoencoderKL(AutoencoderKLConfig(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, sample_size=16))
        if forgetful:
            use_gradient_checkpointing(vae)
        vae.reconstruct(torch.linspace(-1, 1, 768).reshape(1, 3, 16, 16)).square().mean().backward()
        found.append({name: parameter.grad for name, parameter in vae.named_parameters() if parameter.grad is not None})
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
