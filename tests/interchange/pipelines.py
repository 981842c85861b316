"""Stable Diffusion in miniature, at random, made by diffusers and transformers: the shapes of 1.5 and 2.1 at a reduced width."""

from typing import Any, Literal

import pytest
import torch
from torch import nn

from darkroom.models.clip import ClipTowers
from tests.models.tiny_clip import TINY

Kind = Literal["sd1", "sd2"]
SIDE = 8  # latent pixels
TEXT_LAYERS = 2

UNETS: dict[Kind, dict[str, Any]] = {
    "sd1": {"block_out_channels": (32, 64, 64, 64), "attention_head_dim": 8, "cross_attention_dim": 128},
    "sd2": {
        "block_out_channels": (64, 64, 128, 128),
        "attention_head_dim": (1, 1, 2, 2),
        "cross_attention_dim": 64,
        "use_linear_projection": True,
    },
}
COMMON = {
    "sample_size": SIDE,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
VAE = {
    "block_out_channels": (32, 32, 64, 64),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "sample_size": 8 * SIDE,
}
TEXTS: dict[Kind, dict[str, Any]] = {
    "sd1": {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 2, "hidden_act": "quick_gelu"},
    "sd2": {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 1, "hidden_act": "gelu"},
}
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 1,
}
PADS = {"sd1": "<|endoftext|>", "sd2": "!"}


def shaken(module: nn.Module, seed: int) -> nn.Module:
    """With every parameter moved off its initial value: norms and biases too, which would hide a wrong name."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def make_pipeline(kind: Kind, prediction: str = "epsilon") -> Any:
    """A `StableDiffusionPipeline` with random weights."""
    diffusers, transformers = pytest.importorskip("diffusers"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    unet = shaken(diffusers.UNet2DConditionModel(**COMMON | UNETS[kind]), 1)
    vae = shaken(diffusers.AutoencoderKL(**VAE), 2)
    config = transformers.CLIPTextConfig(num_hidden_layers=TEXT_LAYERS, bos_token_id=49406, eos_token_id=49407, **TEXTS[kind])
    text_encoder = shaken(transformers.CLIPTextModel(config), 3)
    return diffusers.StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=make_tokenizer(PADS[kind]),
        scheduler=diffusers.DDIMScheduler(**SCHEDULER, prediction_type=prediction),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def make_tokenizer(pad_token: str) -> Any:
    """transformers' CLIPTokenizer over the vocabulary of open_clip's file, built by transformers' own class."""
    transformers = pytest.importorskip("transformers")
    simple = ClipTowers.build(TINY, seed=0).tokenizer
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocab = {names.get(token, token): index for token, index in simple.encoder.items()}
    merges = sorted(simple.bpe_ranks, key=simple.bpe_ranks.get)
    return transformers.CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad_token, model_max_length=77)
