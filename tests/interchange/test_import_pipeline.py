"""A diffusers folder, imported: every part computes what the original computes, and the whole draws the same pictures."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from darkroom.diffusion.schedule import Schedule
from darkroom.interchange.exchange import import_model
from darkroom.interchange.pipeline_folder import PipelineFolder
from darkroom.interchange.tokenizer import PADS, read_pad_token
from darkroom.models.unet import UNet2DConditionModel
from darkroom.models.weights import load_model
from tests.interchange.conftest import Imported
from tests.interchange.drawing import assert_same_pictures, draw_ours, draw_theirs
from tests.interchange.pipelines import SIDE

CAPTIONS = ["a black cat", "", "two ginger cats on a sofa, " * 20]


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """Relative to the largest value, as fp32 adds up."""
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_the_unet_predicts_the_same(imported: Imported) -> None:
    unet = imported.pipeline.unet
    x, t, context = noise(2, 4, SIDE, SIDE), torch.tensor([7, 801]), noise(2, 77, unet.config.cross_attention_dim)
    assert_close(imported.model.unet(x, t, context), unet(x, t, context).sample)


@torch.no_grad()
def test_the_autoencoder_encodes_and_decodes_the_same(imported: Imported) -> None:
    vae, pictures, raw = imported.pipeline.vae, noise(2, 3, 32, 64).clamp(-1, 1), noise(2, 4, 4, 8)
    posterior = vae.encode(pictures).latent_dist
    mean, std = imported.model.vae.encode(pictures)
    assert_close(mean, posterior.mean)
    assert_close(std, posterior.std)
    assert_close(imported.model.vae.decode(raw), vae.decode(raw).sample)
    assert_close(imported.model.vae.normalise(raw), raw * vae.config.scaling_factor)


@torch.no_grad()
def test_captions_become_the_same_tokens_and_the_same_hidden_states(imported: Imported) -> None:
    tokenizer, clip = imported.pipeline.tokenizer, imported.model.clip
    theirs = tokenizer(CAPTIONS, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    ours = clip.tokenize(CAPTIONS)
    assert torch.equal(ours, theirs)
    assert_close(clip.encode_tokens(ours), imported.pipeline.text_encoder(theirs)[0])


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
def test_the_whole_pipeline_draws_the_same_pictures(imported: Imported, sampler: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    kind = {"ddim": diffusers.DDIMScheduler, "euler": diffusers.EulerDiscreteScheduler}[sampler]
    scheduler = kind.from_config(imported.pipeline.scheduler.config, timestep_spacing="leading")  # Euler's default is another
    pipeline = diffusers.StableDiffusionPipeline(**imported.pipeline.components | {"scheduler": scheduler})
    pipeline.set_progress_bar_config(disable=True)
    assert_same_pictures(draw_ours(imported.model, sampler, imported.model.config.spacing), draw_theirs(pipeline))


def test_what_the_scheduler_says_is_kept(imported: Imported) -> None:
    config = imported.model.config
    assert config.prediction == {"sd1": "epsilon", "sd2": "v_prediction"}[imported.kind]
    assert (config.sampler, config.spacing, config.steps, config.guidance_scale) == ("ddim", "leading", 50, 7.5)
    torch.testing.assert_close(config.schedule.betas, Schedule.make("scaled_linear", 1000, 0.00085, 0.012).betas)


def test_padding_is_a_property_of_the_imported_text_encoder(imported: Imported) -> None:
    stored = json.loads((imported.folder / "clip" / "text_conditioning.json").read_text())
    assert stored == {"layer": "last", "pad_token": {"sd1": "end", "sd2": "zero"}[imported.kind]}


# ---- other ways to store the same


@pytest.fixture
def source(sd1: Imported, tmp_path: Path) -> Path:
    """A copy to change: links, so that it costs nothing."""
    for file in sd1.source.rglob("*"):
        if file.is_file():
            link = tmp_path / "source" / file.relative_to(sd1.source)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)
    return tmp_path / "source"


def change(path: Path, **changes: Any) -> None:
    """Writes a JSON file anew; None takes a key out."""
    values = json.loads(path.read_text()) | changes
    path.unlink()
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_fp32(source: Path, sd1: Imported, dtype: torch.dtype) -> None:
    file = source / "unet" / "diffusion_pytorch_model.safetensors"
    half = {key: value.to(dtype) for key, value in load_file(file).items()}
    file.unlink()
    save_file(half, file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    weights = PipelineFolder(source).unet().state_dict()
    assert {value.dtype for value in weights.values()} == {torch.float32}
    torch.testing.assert_close(weights, {key: value.float() for key, value in half.items()}, rtol=0, atol=0)


def test_pickled_weights_are_read_as_tensors(source: Path, sd1: Imported) -> None:
    file = source / "text_encoder" / "model.safetensors"
    weights = {f"text_model.{key}": value for key, value in load_file(file).items()}  # as transformers before 5.6 writes them
    weights["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    file.unlink()
    torch.save(weights, file.with_name("pytorch_model.bin"))
    torch.testing.assert_close(PipelineFolder(source).clip().state_dict(), sd1.model.clip.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(("pad", "expected"), [("<|endoftext|>", "end"), ({"content": "!", "lstrip": False}, "zero"), (None, "end")])
def test_a_padding_token_may_stand_in_the_map_of_special_tokens_or_be_the_default(source: Path, pad: Any, expected: str) -> None:
    change(source / "tokenizer" / "tokenizer_config.json", pad_token=None)
    if pad is not None:
        (source / "tokenizer" / "special_tokens_map.json").write_text(json.dumps({"pad_token": pad}))
    assert read_pad_token(source / "tokenizer") == expected


@pytest.mark.parametrize("settings", [{}, {"added_tokens_decoder": {"49407": {"content": "<|endoftext|>", "special": True}}}])
def test_two_files_that_disagree_about_the_padding_are_read_as_transformers_reads_them(source: Path, settings: dict[str, Any]) -> None:
    folder = source / "tokenizer"
    change(folder / "tokenizer_config.json", pad_token="<|endoftext|>", **settings)
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": "!"}))
    expected = transformers.CLIPTokenizer.from_pretrained(folder).pad_token
    assert expected == ("<|endoftext|>" if settings else "!")
    assert PADS[read_pad_token(folder)] == expected


# ---- what is not right


def test_an_out_that_is_there_is_refused_and_left(sd1: Imported, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("dear")
    with pytest.raises(ValueError, match=r"exists and is not overwritten"):
        import_model(str(sd1.source), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_import_that_fails_leaves_nothing(source: Path, tmp_path: Path) -> None:
    (source / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"unet has no weights; expected one of diffusion_pytorch_model\.safetensors, "):
        import_model(str(source), tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_a_source_that_is_nowhere_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not found: give a pipeline folder, a single file, or OWNER/NAME"):
        import_model(str(tmp_path / "nothing"), tmp_path / "out")


def test_a_model_of_ours_is_not_imported_again(sd1: Imported, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is already a darkroom model: draw with `darkroom sample --model"):
        import_model(str(sd1.folder), tmp_path / "out")


def test_the_pipeline_of_image_to_image_has_the_same_parts(sd1: Imported, tmp_path: Path) -> None:
    source = Path(shutil.copytree(sd1.source, tmp_path / "source"))
    change(source / "model_index.json", _class_name="StableDiffusionImg2ImgPipeline")
    import_model(str(source), tmp_path / "out")
    for file in sorted(path.relative_to(sd1.folder) for path in sd1.folder.rglob("*.safetensors")):
        assert (tmp_path / "out" / file).read_bytes() == (sd1.folder / file).read_bytes()


def test_a_folder_that_is_no_pipeline_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model_index\.json is missing: .* is not a pipeline folder of diffusers"):
        import_model(str(tmp_path), tmp_path / "out")


def test_another_pipeline_is_refused_by_name(source: Path, tmp_path: Path) -> None:
    change(source / "model_index.json", _class_name="StableDiffusionXLPipeline")
    with pytest.raises(ValueError, match=r"StableDiffusionXLPipeline is not supported; expected StableDiffusionPipeline"):
        import_model(str(source), tmp_path / "out")


def test_a_folder_says_itself_what_it_predicts(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"already defines its prediction; remove --prediction"):
        import_model(str(source), tmp_path / "out", prediction="epsilon")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "relu"}, r"`hidden_act` is 'relu'; CLIP's text encoder has quick_gelu or gelu"),
        ({"layer_norm_eps": 1e-6}, r"`layer_norm_eps` is 1e-06; CLIP's text encoder has 1e-05"),
        ({"vocab_size": 49409}, r"`vocab_size` is 49409; CLIP's text encoder has 49408"),
        ({"hidden_size": None}, r"`hidden_size` is missing; expected the configuration of a CLIPTextModel"),
        ({"num_hidden_layers": 3}, r"does not fit CLIP as configured: `transformer\.resblocks\.2\..*` is missing"),
        ({"num_hidden_layers": 1}, r"`transformer\.resblocks\.1\..*` is not a weight of this model"),
    ],
)
def test_another_text_encoder_is_refused(source: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    change(source / "text_encoder" / "config.json", **changes)
    with pytest.raises(ValueError, match=message):
        import_model(str(source), tmp_path / "out")


def test_an_unknown_weight_of_the_text_encoder_is_named(source: Path) -> None:
    file = source / "text_encoder" / "model.safetensors"
    weights = load_file(file) | {"encoder.layers.0.adapter.weight": torch.zeros(1), "text_projection.weight": torch.zeros(1)}
    file.unlink()
    save_file(weights, file)
    with pytest.raises(
        ValueError, match=r"`(encoder\.layers\.0\.adapter|text_projection)\.weight` is not a weight of this model \(1 more\)"
    ):
        PipelineFolder(source).clip()


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ({"<cat-toy>": 49408}, r"the token '<cat-toy>' is not one of CLIP's own \(1 in total\)"),
        ({"cat</w>": 5}, r"token 'cat</w>' is not one of CLIP's own"),
    ],
)
def test_another_vocabulary_is_refused(source: Path, added: dict[str, int], message: str) -> None:
    (source / "tokenizer" / "added_tokens.json").write_text(json.dumps(added))
    with pytest.raises(ValueError, match=message):
        PipelineFolder(source).clip()


def test_a_vocabulary_that_lacks_tokens_is_refused(source: Path) -> None:
    (source / "tokenizer" / "vocab.json").write_text('{"!": 0}')
    with pytest.raises(ValueError, match=r"has 1 tokens, CLIP's tokenizer has 49408"):
        PipelineFolder(source).clip()


def test_a_folder_without_vocabulary_is_refused(source: Path) -> None:
    (source / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"has neither vocab\.json nor tokenizer\.json"):
        PipelineFolder(source).clip()


def test_another_padding_is_refused(source: Path) -> None:
    change(source / "tokenizer" / "tokenizer_config.json", pad_token="[PAD]")
    with pytest.raises(ValueError, match=r"`pad_token` is '\[PAD\]'; Stable Diffusion pads with ! or <\|endoftext\|>"):
        PipelineFolder(source).clip()


def replace_unet(source: Path, **changes: Any) -> None:
    """The U-Net of another configuration, with weights that fit it."""
    diffusers = pytest.importorskip("diffusers")
    config = diffusers.UNet2DConditionModel.load_config(source / "unet")
    for file in (source / "unet").iterdir():
        file.unlink()
    diffusers.UNet2DConditionModel.from_config(config | changes).save_pretrained(source / "unet")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"cross_attention_dim": 32},
            r"The U-Net expects token embeddings of width 32, but those of the text encoder have \d+: they belong to different models",
        ),
        ({"in_channels": 9}, r"The U-Net has 9 input and 4 output channels, but the latents have 4: models for inpainting"),
        ({"sample_size": None}, r"`sample_size` is missing in config\.json of the U-Net"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(source: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    replace_unet(source, **changes)
    with pytest.raises(ValueError, match=message):
        import_model(str(source), tmp_path / "out")


def test_the_imported_parts_load_one_by_one(imported: Imported) -> None:
    loaded = load_model(UNet2DConditionModel, imported.folder / "unet")
    torch.testing.assert_close(loaded.state_dict(), imported.pipeline.unet.state_dict(), rtol=0, atol=0)
