"""Names of the text encoder's weights, against transformers' model and diffusers' conversion."""

from typing import Any

import pytest
import torch
from torch import Tensor

from darkroom.interchange.text_encoder import model_cfg_from_transformers, to_open_clip, to_transformers, transformers_config
from darkroom.models.clip import ClipTowers
from tests.models.tiny_clip import CAPTIONS, TINY


@pytest.fixture(scope="module")
def towers() -> ClipTowers:
    return ClipTowers.build(TINY, seed=0).eval()


def text_weights(towers: ClipTowers) -> dict[str, Tensor]:
    return {
        key: value for key, value in towers.model.state_dict().items() if not key.startswith(("visual.", "logit_scale", "text_projection"))
    }


def transformers_model(towers: ClipTowers, num_layers: int) -> Any:
    transformers = pytest.importorskip("transformers")
    model = transformers.CLIPTextModel(transformers.CLIPTextConfig(**transformers_config(towers.model_cfg, num_layers=num_layers)))
    weights = {
        key.removeprefix("text_model."): value for key, value in to_transformers(towers.model.state_dict(), num_layers=num_layers).items()
    }
    model.load_state_dict(weights, strict=True)
    return model.eval()


@torch.no_grad()
def test_transformers_computes_the_same_from_our_weights(towers: ClipTowers) -> None:
    tokens = towers.tokenize(CAPTIONS)
    theirs = transformers_model(towers, num_layers=2)(tokens).last_hidden_state
    torch.testing.assert_close(towers.encode_tokens(tokens), theirs, rtol=1e-4, atol=1e-5)


def test_weights_come_back_as_they_went(towers: ClipTowers) -> None:
    weights = text_weights(towers)
    there = to_transformers(towers.model.state_dict(), num_layers=2)
    assert all(key.startswith("text_model.") for key in there)
    torch.testing.assert_close(to_open_clip(there), weights, rtol=0, atol=0)
    bare = {key.removeprefix("text_model."): value for key, value in there.items()}
    torch.testing.assert_close(to_open_clip(bare), weights, rtol=0, atol=0)


def test_diffusers_conversion_of_open_clip_names_is_ours(towers: ClipTowers) -> None:
    conversion = pytest.importorskip("diffusers.loaders.single_file_utils")
    model = transformers_model(towers, num_layers=2)
    file = {f"cond_stage_model.model.{key}": value for key, value in text_weights(towers).items()}
    theirs = conversion.convert_open_clip_checkpoint(model, file)
    torch.testing.assert_close(to_transformers(text_weights(towers), num_layers=2), theirs, rtol=0, atol=0)


def test_layers_that_are_not_wanted_stay_behind(towers: ClipTowers) -> None:
    kept = to_transformers(towers.model.state_dict(), num_layers=1)
    assert any(".layers.0." in key for key in kept)
    assert not any(".layers.1." in key for key in kept)


def test_a_third_that_is_missing_is_a_stack_that_is_missing(towers: ClipTowers) -> None:
    there = to_transformers(towers.model.state_dict(), num_layers=2)
    del there["text_model.encoder.layers.1.self_attn.v_proj.bias"]
    missing = set(text_weights(towers)) - set(to_open_clip(there))
    assert missing == {"transformer.resblocks.1.attn.in_proj_bias"}


def test_a_description_comes_back_as_it_went(towers: ClipTowers) -> None:
    config = transformers_config(towers.model_cfg, num_layers=2)
    described = model_cfg_from_transformers(config, "a file")
    assert transformers_config(described, num_layers=2) == config | {"projection_dim": 64}
    for name in ("width", "heads", "layers", "context_length", "vocab_size"):
        assert described["text_cfg"][name] == towers.model_cfg["text_cfg"][name]
