"""The towers' arithmetic against open_clip, against transformers' text model and against a forward written out by hand."""

import math
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from darkroom.models.clip import ClipTowers
from tests.models.tiny_clip import CAPTIONS, TINY


def pictures(size: int = 16, count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_the_towers_have_the_sizes_asked_for(towers: ClipTowers) -> None:
    assert (towers.context_length, towers.context_dim, towers.image_size) == (12, 64, 16)
    assert towers.encode_tokens(towers.tokenize(CAPTIONS)).shape == (2, 12, 64)
    assert towers.encode_images(pictures()).shape == towers.encode_texts(CAPTIONS).shape == (2, 16)


@torch.no_grad()
def test_encode_tokens_is_a_causal_pre_norm_transformer_with_a_final_norm(towers: ClipTowers) -> None:
    weights, heads = towers.model.state_dict(), TINY["text_width"] // 32
    tokens = towers.tokenize(CAPTIONS)
    x = weights["token_embedding.weight"][tokens] + weights["positional_embedding"]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    future = torch.full((12, 12), -math.inf).triu(1)
    for layer in range(TINY["text_layers"]):
        block = f"transformer.resblocks.{layer}"
        packed = norm(x, f"{block}.ln_1") @ weights[f"{block}.attn.in_proj_weight"].T + weights[f"{block}.attn.in_proj_bias"]
        query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in packed.chunk(3, dim=-1))
        mixed = torch.softmax(query @ key.mT / math.sqrt(32) + future, -1) @ value
        x = x + linear(mixed.transpose(1, 2).flatten(2), f"{block}.attn.out_proj")
        x = x + linear(F.gelu(linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc")), f"{block}.mlp.c_proj")
    torch.testing.assert_close(towers.encode_tokens(tokens), norm(x, "ln_final"), atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("quick_gelu", [False, True])
def test_encode_tokens_is_the_last_hidden_state_of_transformers(towers: ClipTowers, quick_gelu: bool) -> None:
    transformers = pytest.importorskip("transformers")
    model_cfg = towers.model_cfg | {"quick_gelu": quick_gelu}
    ours = ClipTowers(open_clip.CLIP(**model_cfg).eval(), model_cfg, towers.preprocess_cfg)
    config = transformers.CLIPTextConfig(
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
        hidden_act="quick_gelu" if quick_gelu else "gelu",
    )
    theirs = transformers.CLIPTextModel(config).eval()
    theirs.load_state_dict(as_transformers(ours.model.state_dict(), like=theirs.state_dict()))
    tokens = ours.tokenize(CAPTIONS)
    torch.testing.assert_close(ours.encode_tokens(tokens), theirs(tokens).last_hidden_state, atol=1e-5, rtol=1e-4)


def as_transformers(weights: dict[str, Tensor], *, like: dict[str, Tensor]) -> dict[str, Tensor]:
    first = "embeddings.token_embedding.weight"
    prefix = next(key for key in like if key.endswith(first)).removesuffix(first)
    renamed = {
        first: weights["token_embedding.weight"],
        "embeddings.position_embedding.weight": weights["positional_embedding"],
        "final_layer_norm.weight": weights["ln_final.weight"],
        "final_layer_norm.bias": weights["ln_final.bias"],
    }
    names = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    names["attn.out_proj"] = "self_attn.out_proj"
    for layer in range(TINY["text_layers"]):
        block, target = f"transformer.resblocks.{layer}", f"encoder.layers.{layer}"
        for kind in ("weight", "bias"):
            for old, new in names.items():
                renamed[f"{target}.{new}.{kind}"] = weights[f"{block}.{old}.{kind}"]
            for letter, part in zip("qkv", weights[f"{block}.attn.in_proj_{kind}"].chunk(3), strict=True):
                renamed[f"{target}.self_attn.{letter}_proj.{kind}"] = part
    return {prefix + key: value for key, value in renamed.items()}


def test_features_have_length_one_and_the_scale_is_bounded(towers: ClipTowers) -> None:
    image_features, text_features, scale = towers(torch.from_numpy(pictures()), towers.tokenize(CAPTIONS))
    torch.testing.assert_close(image_features.norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(text_features.norm(dim=-1), torch.ones(2))
    assert scale.item() == pytest.approx(1 / 0.07)
    sharp = ClipTowers.build(TINY, seed=0)
    torch.nn.init.constant_(sharp.model.logit_scale, 50.0)
    assert sharp(torch.from_numpy(pictures()), towers.tokenize(CAPTIONS))[2].item() == 100


def test_forward_uses_every_parameter() -> None:  # else DistributedDataParallel waits for gradients that never come
    towers = ClipTowers.build(TINY, seed=0)
    image_features, text_features, scale = towers(torch.zeros(2, 3, 16, 16), towers.tokenize(CAPTIONS))
    (scale * image_features @ text_features.T).sum().backward()
    assert [name for name, parameter in towers.named_parameters() if parameter.grad is None] == []


def test_metrics_features_are_those_of_forward(towers: ClipTowers) -> None:
    image_features, text_features, _ = towers(torch.from_numpy(pictures()), towers.tokenize(CAPTIONS))
    torch.testing.assert_close(towers.encode_images(pictures()), image_features.detach())
    torch.testing.assert_close(towers.encode_texts(CAPTIONS), text_features.detach())


def test_uint8_and_float_pictures_are_seen_alike(towers: ClipTowers) -> None:
    whole = torch.from_numpy(pictures(40))
    as_float = whole.permute(0, 3, 1, 2).float() / 127.5 - 1
    torch.testing.assert_close(towers.preprocess(whole), towers.preprocess(as_float), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(40, 40), (40, 25), (21, 64), (9, 12)])
def test_pictures_are_resized_cut_and_normalised_as_open_clip_does(towers: ClipTowers, tmp_path: Path, shape: tuple[int, int]) -> None:
    pixels = {"mean": [0.4, 0.5, 0.6], "std": [0.3, 0.4, 0.5]}
    towers = ClipTowers(towers.model, towers.model_cfg, towers.preprocess_cfg | pixels)
    towers.save(tmp_path)
    _, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    coarse = np.random.default_rng(0).integers(64, 192, (8, 8, 3), dtype=np.uint8)  # no value that overshoots is cut off
    picture = np.asarray(Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BICUBIC))
    expected = preprocess(Image.fromarray(picture))
    actual = towers.preprocess(torch.from_numpy(picture.copy())[None])[0]
    torch.testing.assert_close(actual, expected, atol=2 / 255 / 0.3, rtol=0)  # theirs rounds to whole values twice


def test_lost_words_are_what_truncation_drops(towers: ClipTowers) -> None:
    caption = "one two three four five six seven eight nine ten"  # ten tokens: all that fit
    assert towers.lost_words(caption) == ""
    assert towers.lost_words(caption + " eleven twelve") == "eleven twelve"
    assert torch.equal(towers.tokenize([caption + " eleven twelve"]), towers.tokenize([caption]))


def test_a_word_that_is_cut_in_the_middle_is_lost_whole(towers: ClipTowers) -> None:
    assert len(towers.tokenizer.encode("labradoodles")) > 1
    assert towers.lost_words("one two three four five six seven eight nine labradoodles") == "labradoodles"
    assert towers.lost_words("q" * 200) == "q" * 200


def test_a_caption_of_ten_thousand_characters_is_cut(towers: ClipTowers) -> None:
    assert towers.tokenize(["cat " * 2500]).shape == (1, 12)


def test_bfloat16_autocast_stays_close(towers: ClipTowers) -> None:
    images, tokens = torch.from_numpy(pictures()), towers.tokenize(CAPTIONS)
    expected = towers(images, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        actual = towers(images, tokens)
    assert actual[0].dtype == actual[1].dtype == torch.float32
    torch.testing.assert_close(actual, expected, atol=0.02, rtol=0.02)
