"""A step of the toy's U-Net: fp32 or bf16, fused or plain attention, cached or encoded inputs, diffusers or ours; Muon's part of it."""

from collections.abc import Callable, Iterator
from unittest.mock import patch

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel as DiffusersUNet
from torch import Tensor, nn

from benchmarks.ratio import Ratio, measure
from darkroom.models import layers
from darkroom.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from darkroom.models.clip import ClipTowers
from darkroom.models.unet import UNet2DConditionModel, UNetConfig
from darkroom.training.optimizer import iterated, iterated_by_gram, make_optimizer

BATCH = 64
CLIP = {"embed_dim": 64, "image_size": 32, "patch_size": 8, "vision_width": 96, "vision_layers": 3, "text_width": 96, "text_layers": 2}


def unet() -> UNet2DConditionModel:
    config = UNetConfig.from_levels(
        block_out_channels=[64, 128],
        attention=[True, True],
        layers_per_block=1,
        channels_per_head=32,
        norm_num_groups=16,
        latent_channels=4,
        latent_size=8,
        context_dim=96,
    )
    net = UNet2DConditionModel(config)
    net.initialise(0)
    return net


def step(net: nn.Module, predict: Callable[[], Tensor], bf16: bool) -> Callable[[], None]:
    optimizer = make_optimizer(net, kind="adamw", lr=1e-4, weight_decay=0.01)

    def work() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = predict().float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return work


def ratios() -> Iterator[Ratio]:
    torch.manual_seed(0)
    x, timesteps, context = torch.randn(BATCH, 4, 8, 8), torch.randint(0, 1000, (BATCH,)), torch.randn(BATCH, 32, 96)
    net = unet()

    def ours() -> Tensor:
        return net(x, timesteps, context)

    yield measure("U-Net step", {"fp32": step(net, ours, bf16=False), "bf16": step(net, ours, bf16=True)})

    plain = step(net, ours, bf16=True)

    def fused() -> None:
        with patch.object(layers, "attend", F.scaled_dot_product_attention):
            plain()

    yield measure("U-Net step, bf16", {"fused attention": fused, "plain attention": plain})

    theirs = DiffusersUNet.from_config({key: value for key, value in net.config.to_json().items() if not key.startswith("_")})
    yield measure(
        "U-Net step, fp32",
        {"diffusers": step(theirs, lambda: theirs(x, timesteps, context).sample, bf16=False), "ours": step(net, ours, bf16=False)},
    )

    vae = AutoencoderKL(AutoencoderKLConfig(block_out_channels=(32, 64, 64), norm_num_groups=16, mid_block_add_attention=False))
    towers = ClipTowers.build(CLIP | {"context_length": 32}, seed=0)
    images, tokens = torch.rand(BATCH, 3, 32, 32) * 2 - 1, towers.tokenize(["a sitting orange cat with green eyes"] * BATCH)

    def encoded() -> Tensor:
        with torch.no_grad():
            mean, _ = vae.encode(images)
            text = towers.encode_tokens(tokens)
        return net(mean, timesteps, text)

    yield measure("U-Net step, bf16", {"encode each step": step(net, encoded, bf16=True), "cached": plain})

    kernel = torch.randn(256, 256 * 9)
    yield measure(
        "Muon's direction of a 256 x 2304 matrix",
        {"matrix iterated": lambda: iterated(kernel), "Gram matrix iterated": lambda: iterated_by_gram(kernel)},
    )
