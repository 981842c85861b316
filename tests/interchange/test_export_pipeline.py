"""A folder for diffusers: it loads offline, strictly, and draws our pictures."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from darkroom.interchange.exchange import export_model, import_model
from darkroom.models.autoencoder_kl import AutoencoderKL
from darkroom.models.clip import CONFIG_FILE, ClipTowers
from darkroom.models.text_conditioning import TextConditioning
from darkroom.models.weights import load_model
from darkroom.provenance import INDEX, write_index
from darkroom.sampling.text_to_image import TextToImage
from tests.interchange.conftest import Imported
from tests.interchange.drawing import assert_same_pictures, draw_ours, draw_theirs
from tests.interchange.own_model import write_model

CAPTIONS = ["a black cat", "", "Two GINGER cats, on a sofa; it's 2024 - naïve café 😀", "cat " * 100]
WEIGHTS = "diffusion_pytorch_model.safetensors"


def load(folder: Path) -> Any:
    diffusers = pytest.importorskip("diffusers")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_ours(folder: Path) -> TextToImage:
    return TextToImage.load(folder, torch.device("cpu"))


def test_what_was_imported_is_exported_bit_for_bit(imported: Imported) -> None:
    for part, name in (("unet", WEIGHTS), ("vae", WEIGHTS), ("text_encoder", "model.safetensors")):
        before, after = load_file(imported.source / part / name), load_file(imported.exported / part / name)
        after = {key.removeprefix("text_model."): value for key, value in after.items()}
        torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_diffusers_draws_what_we_draw_from_what_we_export(imported: Imported) -> None:
    pipeline = load(imported.exported)
    assert type(pipeline.scheduler).__name__ == "DDIMScheduler"
    assert_same_pictures(draw_ours(imported.model, "ddim", "leading"), draw_theirs(pipeline))


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "cosine", "prediction": "v_prediction"},
        {"kind": "linear", "prediction": "sample"},
        {"kind": "quadratic", "prediction": "epsilon"},
        {"kind": "sigmoid", "prediction": "v_prediction", "zero_terminal_snr": True},
        {"kind": "linear", "prediction": "epsilon", "vae_changes": {"use_quant_conv": False, "use_post_quant_conv": False}},
    ],
    ids=["cosine-v", "linear-sample", "quadratic-epsilon", "sigmoid-zero-snr", "no-quant-convs"],
)
def test_a_model_of_our_own_draws_the_same_in_diffusers(tmp_path: Path, settings: dict[str, Any]) -> None:
    write_model(tmp_path / "model", **settings)
    export_model(tmp_path / "model", tmp_path / "out", "diffusers")
    pipeline, model = load(tmp_path / "out"), load_ours(tmp_path / "model")
    assert pipeline.scheduler.config.prediction_type == settings["prediction"]
    assert_same_pictures(draw_ours(model, "ddim", "trailing", guidance_scale=3.0), draw_theirs(pipeline, guidance_scale=3.0))


@torch.no_grad()
def test_transformers_tokenizes_and_encodes_as_we_do(imported: Imported) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(imported.exported / "tokenizer", local_files_only=True)
    model, info = transformers.CLIPTextModel.from_pretrained(
        imported.exported / "text_encoder", local_files_only=True, output_loading_info=True
    )
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens = tokenizer(CAPTIONS, padding="max_length", truncation=True, return_tensors="pt").input_ids
    ours = imported.model.clip.tokenize(CAPTIONS)
    assert torch.equal(tokens, ours)
    theirs = model(tokens).last_hidden_state
    torch.testing.assert_close(imported.model.clip.encode_tokens(ours), theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())


@torch.no_grad()
def test_a_penultimate_layer_is_the_last_one_of_an_encoder_with_one_less(sd1: Imported, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    for part in ("vae", "unet", "clip"):
        (tmp_path / "model" / part).mkdir(parents=True)
        for file in (sd1.folder / part).iterdir():
            if file.name != INDEX:  # which would say that a file was changed by hand
                (tmp_path / "model" / part / file.name).write_bytes(file.read_bytes())
    TextConditioning("penultimate", "end").save(tmp_path / "model" / "clip")
    export_model(tmp_path / "model", tmp_path / "out", "diffusers")
    model = transformers.CLIPTextModel.from_pretrained(tmp_path / "out" / "text_encoder", local_files_only=True)
    assert model.config.num_hidden_layers == 1
    clip = ClipTowers.load(tmp_path / "model" / "clip")
    tokens = clip.tokenize(CAPTIONS)
    torch.testing.assert_close(clip.encode_tokens(tokens), model(tokens).last_hidden_state, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_an_exported_autoencoder_has_no_shift(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    export_model(tmp_path / "model", tmp_path / "out", "diffusers")
    config = json.loads((tmp_path / "out" / "vae" / "config.json").read_text())
    assert (config["scaling_factor"], config["shift_factor"]) == (0.8, None)
    theirs = pytest.importorskip("diffusers").AutoencoderKL.from_pretrained(tmp_path / "out" / "vae")
    ours = load_model(AutoencoderKL, tmp_path / "model" / "vae")
    pictures = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = theirs.encode(pictures).latent_dist.mean * theirs.config.scaling_factor
    torch.testing.assert_close(latents, ours.normalise(ours.encode(pictures)[0]), rtol=1e-4, atol=1e-5)


def test_what_is_exported_is_imported_as_the_same_model(imported: Imported, tmp_path: Path) -> None:
    import_model(str(imported.exported), tmp_path / "again")
    before, after = imported.model, load_ours(tmp_path / "again")
    for part in ("clip", "vae", "unet"):
        torch.testing.assert_close(getattr(after, part).state_dict(), getattr(before, part).state_dict(), rtol=0, atol=0)
    assert after.clip.conditioning == before.clip.conditioning
    assert (after.config.prediction, after.config.spacing) == (before.config.prediction, before.config.spacing)
    assert torch.equal(after.config.schedule.betas, before.config.schedule.betas)


def test_the_card_says_how_to_load_and_what_was_trained(imported: Imported) -> None:
    card = (imported.exported / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: diffusers\n")
    assert "| prediction of the U-Net | " + imported.model.config.prediction in card
    assert "height=64, width=64, num_inference_steps=50, guidance_scale=7.5" in card
    assert ("an exclamation mark" in card) == (imported.kind == "sd2")


def test_an_out_that_is_there_is_refused_and_left(sd1: Imported, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("dear")
    with pytest.raises(ValueError, match=r"exists and is not overwritten"):
        export_model(sd1.folder, tmp_path, "diffusers")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_prediction_that_no_pipeline_has_leaves_nothing(tmp_path: Path) -> None:
    write_model(tmp_path / "model", kind="flow", prediction="flow")
    with pytest.raises(ValueError, match=r"Models with prediction 'flow' cannot be exported"):
        export_model(tmp_path / "model", tmp_path / "out", "diffusers")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"clip/ not found: a model is a folder with clip/, vae/ and unet/"):
        export_model(tmp_path, tmp_path / "out", "diffusers")


def test_parts_of_different_runs_are_refused(tmp_path: Path) -> None:
    write_model(tmp_path)
    write_index(tmp_path / "vae", stage="train_vae", params={}, inputs={}, content={})
    other = json.loads((tmp_path / "vae" / "index.json").read_text()) | {"fingerprint": "another"}
    write_index(tmp_path / "unet", stage="train_unet", params={}, inputs={"vae": other}, content={})
    with pytest.raises(ValueError, match=r"`unet` was made from another `vae`"):
        export_model(tmp_path, tmp_path / "out", "diffusers")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"no_causal_mask": True}, r"text encoder cannot be exported: CLIP's own does not have `no_causal_mask: True`"),
        (
            {"tokenizer_kwargs": {"clean": "whitespace"}},
            r"The text encoder cannot be exported: CLIP's own does not have `tokenizer_kwargs: ",
        ),
    ],
)
def test_a_text_encoder_that_others_cannot_build_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_model(tmp_path / "model")
    file = tmp_path / "model" / "clip" / CONFIG_FILE
    config = json.loads(file.read_text())
    config["model_cfg"]["text_cfg"] |= changes
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        export_model(tmp_path / "model", tmp_path / "out", "diffusers")


def test_a_text_encoder_of_another_vocabulary_is_refused(sd1: Imported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = ClipTowers.load

    def another(source: Path) -> ClipTowers:
        clip = whole(source)
        clip.model.vocab_size = 100
        return clip

    monkeypatch.setattr(ClipTowers, "load", another)
    with pytest.raises(ValueError, match=r"The text encoder cannot be exported: it has 100 tokens, CLIP's own has 49408"):
        export_model(sd1.folder, tmp_path / "out", "diffusers")
