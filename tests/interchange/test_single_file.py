"""One file for all: our own come back bit for bit, those of others are understood, diffusers reads them and draws the same."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from darkroom.diffusion.schedule import Schedule
from darkroom.interchange.exchange import export_model, import_model
from darkroom.interchange.single_file import SingleFile
from darkroom.sampling.text_to_image import TextToImage
from tests.interchange.conftest import Imported
from tests.interchange.drawing import assert_same_pictures, draw_ours, draw_theirs
from tests.interchange.own_model import write_model

UNET = "model.diffusion_model."
PREDICTIONS = {"sd1": None, "sd2": "v_prediction"}  # what --prediction must say of a foreign file


def load_ours(folder: Path) -> TextToImage:
    return TextToImage.load(folder, torch.device("cpu"))


def assert_same_weights(first: TextToImage, second: TextToImage) -> None:
    for part in ("clip", "vae", "unet"):
        torch.testing.assert_close(getattr(first, part).state_dict(), getattr(second, part).state_dict(), rtol=0, atol=0)


@pytest.fixture(scope="module")
def foreign(imported: Imported) -> dict[str, Tensor]:
    """The weights as anybody's file has them: nothing is said of the configuration."""
    return load_file(imported.single_file)


@pytest.fixture(scope="module")
def foreign1(sd1: Imported) -> dict[str, Tensor]:
    """Of 1.x, for what does not depend on the family."""
    return load_file(sd1.single_file)


def save(weights: dict[str, Tensor], path: Path) -> Path:
    save_file(weights, path, metadata={"format": "pt"})
    return path


# ---- our own


def test_our_own_file_comes_back_bit_for_bit(imported: Imported, tmp_path: Path) -> None:
    import_model(str(imported.single_file), tmp_path / "again")
    before, after = imported.model, load_ours(tmp_path / "again")
    assert_same_weights(after, before)
    assert (after.unet.config, after.vae.config, after.clip.conditioning) == (
        before.unet.config,
        before.vae.config,
        before.clip.conditioning,
    )
    settings = [(c.prediction, c.sampler, c.steps, c.guidance_scale, c.spacing) for c in (before.config, after.config)]
    assert settings[0] == settings[1]
    export_model(tmp_path / "again", tmp_path / "twice.safetensors", "single-file")
    assert (tmp_path / "twice.safetensors").read_bytes() == imported.single_file.read_bytes()


def test_a_model_of_our_own_comes_back_and_draws_the_same(tmp_path: Path) -> None:
    write_model(tmp_path / "model", kind="cosine", prediction="sample", zero_terminal_snr=True)
    written = export_model(tmp_path / "model", tmp_path / "own.safetensors", "single-file")
    assert written == [tmp_path / "own.safetensors", tmp_path / "own.md"]
    import_model(str(tmp_path / "own.safetensors"), tmp_path / "again")
    before, after = load_ours(tmp_path / "model"), load_ours(tmp_path / "again")
    assert (after.config.prediction, after.config.sampler, after.config.steps, after.config.guidance_scale) == (
        "sample",
        "dpmpp_2m",
        20,
        3.0,
    )
    assert (after.vae.config.scaling_factor, after.vae.config.shift_factor) == (0.18215, None)
    torch.testing.assert_close(after.unet.state_dict(), before.unet.state_dict(), rtol=0, atol=0)
    assert_same_pictures(*(draw_ours(model, "ddim", "trailing") for model in (after, before)))


def test_the_layout_of_the_text_encoder_is_that_of_its_family(imported: Imported, foreign: dict[str, Tensor]) -> None:
    names = {
        "sd1": "cond_stage_model.transformer.text_model.encoder.layers.1.self_attn.q_proj.weight",
        "sd2": "cond_stage_model.model.transformer.resblocks.1.attn.in_proj_weight",
    }
    assert [kind for kind, name in names.items() if name in foreign] == [imported.kind]


def test_diffusers_reads_our_file_and_draws_the_same(imported: Imported) -> None:
    diffusers = pytest.importorskip("diffusers")
    pipeline = diffusers.StableDiffusionPipeline.from_single_file(
        str(imported.single_file), config=str(imported.exported), local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    assert_same_pictures(draw_ours(imported.model, "ddim", "leading"), draw_theirs(pipeline))


def test_the_head_of_the_file_holds_all_configurations(imported: Imported) -> None:
    with safe_open(imported.single_file, "pt") as file:
        metadata = json.loads(file.metadata()["darkroom"])
    assert metadata["scheduler"]["prediction_type"] == imported.model.config.prediction
    assert metadata["vae"]["scaling_factor"] == 0.18215
    assert metadata["unet"]["cross_attention_dim"] == metadata["text"]["model_cfg"]["text_cfg"]["width"]


# ---- those of others


def test_a_foreign_file_is_understood_by_its_shapes(imported: Imported, foreign: dict[str, Tensor], tmp_path: Path) -> None:
    save(foreign, tmp_path / "foreign.safetensors")
    import_model(str(tmp_path / "foreign.safetensors"), tmp_path / "model", prediction=PREDICTIONS[imported.kind])
    before, after = imported.model, load_ours(tmp_path / "model")
    assert_same_weights(after, before)
    assert after.unet.config.heads == before.unet.config.heads
    assert after.unet.config.sample_size == {"sd1": 64, "sd2": 96}[imported.kind]
    assert after.clip.model_cfg == before.clip.model_cfg
    assert after.vae.config.scaling_factor == 0.18215
    assert after.config.prediction == before.config.prediction
    assert torch.equal(after.config.schedule.betas, before.config.schedule.betas)
    assert after.clip.conditioning.layer == {"sd1": "last", "sd2": "penultimate"}[imported.kind]
    assert after.clip.conditioning.pad_token == {"sd1": "end", "sd2": "zero"}[imported.kind]


def test_what_training_left_in_a_checkpoint_is_ignored(imported: Imported, foreign: dict[str, Tensor], tmp_path: Path) -> None:
    extras = {
        **{f"model_ema.{key.replace('.', '')}": value for key, value in foreign.items() if key.startswith(UNET)},
        "model_ema.decay": torch.tensor(0.9999),
        "betas": Schedule.make("scaled_linear", 1000, 0.00085, 0.012).betas.half(),
        "alphas_cumprod_prev": torch.ones(1000),
        "sqrt_recipm1_alphas_cumprod": torch.ones(1000),
        "posterior_mean_coef2": torch.ones(1000),
        "first_stage_model.model_ema.decoderconv_inweight": torch.ones(1),
        "first_stage_model.loss.perceptual_loss.net.slice1.0.weight": torch.ones(1),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
        "cond_stage_model.model.attn_mask": torch.zeros(77, 77),
        "cond_stage_model.model.text_projection": torch.zeros(4, 4),
    }
    checkpoint = {
        "state_dict": foreign | extras,
        "global_step": 470000,
        "optimizer_states": [{"lr": 1e-4}],
        "pytorch-lightning_version": "1.4",
    }
    torch.save(checkpoint, tmp_path / "model.ckpt")
    import_model(str(tmp_path / "model.ckpt"), tmp_path / "model", prediction=PREDICTIONS[imported.kind])
    assert_same_weights(load_ours(tmp_path / "model"), imported.model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_fp32(sd1: Imported, foreign1: dict[str, Tensor], tmp_path: Path, dtype: torch.dtype) -> None:
    path = save({key: value.to(dtype) for key, value in foreign1.items()}, tmp_path / "half.safetensors")
    weights = SingleFile(path, None).vae().state_dict()
    expected = {key: value.to(dtype).float() for key, value in sd1.model.vae.state_dict().items()}
    torch.testing.assert_close(weights, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_stable_diffusions_scale_of_latents_is_recognised_however_it_was_rounded(
    foreign1: dict[str, Tensor], tmp_path: Path, dtype: torch.dtype
) -> None:
    path = save(foreign1 | {"scale_factor": torch.tensor(0.18215).to(dtype)}, tmp_path / "scaled.safetensors")
    assert SingleFile(path, None).vae().config.scaling_factor == 0.18215


def test_a_measured_scale_of_latents_is_taken(sd1: Imported, foreign1: dict[str, Tensor], tmp_path: Path) -> None:
    path = save(foreign1 | {"scale_factor": torch.tensor(0.22765929)}, tmp_path / "scaled.safetensors")
    assert SingleFile(path, None).vae().config.scaling_factor == 0.2276593


def test_the_prediction_may_be_given(sd1: Imported, foreign1: dict[str, Tensor], tmp_path: Path) -> None:
    path = save(foreign1, tmp_path / "foreign.safetensors")
    model = SingleFile(path, "v_prediction")
    assert model.diffusion().prediction == "v_prediction"
    assert model.unet().config.sample_size == 96


def test_a_file_of_23_open_clip_layers_went_through_a_diffusers_folder(
    imported: Imported, foreign: dict[str, Tensor], tmp_path: Path
) -> None:
    if imported.kind == "sd1":
        pytest.skip("2.x alone")
    first = "cond_stage_model.model.transformer.resblocks.0."
    layers = {
        key.replace(first, first.replace("0", str(n))): value.clone() for n in range(23) for key, value in foreign.items() if first in key
    }
    clip = SingleFile(save(foreign | layers, tmp_path / "layers.safetensors"), "epsilon").clip()
    assert (clip.model_cfg["text_cfg"]["layers"], clip.conditioning.layer) == (23, "last")


# ---- what is not right


def broken(foreign: dict[str, Tensor], tmp_path: Path, *, remove: str = "", **changes: Tensor) -> str:
    return str(
        save({key: value for key, value in (foreign | changes).items() if key != remove or not remove}, tmp_path / "broken.safetensors")
    )


def test_a_2x_that_does_not_say_what_it_predicts_is_asked(imported: Imported, foreign: dict[str, Tensor], tmp_path: Path) -> None:
    if imported.kind == "sd1":
        assert SingleFile(Path(broken(foreign, tmp_path)), None).prediction == "epsilon"
        return
    with pytest.raises(ValueError, match=r"do not contain the prediction\. Give --prediction epsilon .* or --prediction v_prediction"):
        import_model(broken(foreign, tmp_path), tmp_path / "out")


def test_an_unknown_prediction_is_refused(foreign1: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--prediction 'velocity' is unknown; expected one of epsilon, v_prediction"):
        import_model(broken(foreign1, tmp_path), tmp_path / "out", prediction="velocity")


def test_our_own_file_defines_its_prediction(sd1: Imported, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"already defines its prediction; remove --prediction"):
        import_model(str(sd1.single_file), tmp_path / "out", prediction="epsilon")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("conditioner.embedders.0.transformer.text_model.final_layer_norm.bias", r"is Stable Diffusion XL \(it has `conditioner"),
        ("model.diffusion_model.label_emb.0.0.weight", r"is Stable Diffusion XL"),
        ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", r"is a LoRA adapter, not a full model"),
        ("unet.down_blocks.0.attentions.0.to_q.lora_A.weight", r"is a LoRA"),
        ("control_model.time_embed.0.weight", r"is a ControlNet, not a full model"),
        ("controlnet_cond_embedding.conv_in.weight", r"is a ControlNet"),
        ("model.diffusion_model.joint_blocks.0.x_block.attn.proj.bias", r"is Stable Diffusion 3"),
        ("model.diffusion_model.double_blocks.0.img_attn.proj.bias", r"is Flux"),
        ("emb_params", r"is a textual inversion"),
        ("decoder.conv_in.weight", r"is only an autoencoder"),
        ("down_blocks.0.resnets.0.conv1.weight", r"is one part of a pipeline folder; import the folder"),
    ],
)
def test_another_architecture_is_named(tmp_path: Path, name: str, message: str) -> None:
    path = save({name: torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=message):
        import_model(str(path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_without_a_part_is_told(tmp_path: Path) -> None:
    path = save({"model.diffusion_model.out.2.bias": torch.zeros(1)}, tmp_path / "unet.safetensors")
    with pytest.raises(ValueError, match=r"has no autoencoder \(`first_stage_model\.\*`\): it is not a complete Stable Diffusion"):
        import_model(str(path), tmp_path / "out")


def test_a_missing_weight_is_named(foreign1: dict[str, Tensor], tmp_path: Path) -> None:
    name = "first_stage_model.decoder.mid.attn_1.k.bias"
    with pytest.raises(ValueError, match=r"`first_stage_model\.decoder\.mid\.attn_1\.k\.bias` is missing \(1 in total\)"):
        import_model(broken(foreign1, tmp_path, remove=name), tmp_path / "out", prediction="epsilon")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("name", ["middle_block.1.proj_in.weight", "out.2.weight", "input_blocks.1.0.out_layers.3.weight"])
def test_a_missing_weight_that_says_a_width_is_named(foreign1: dict[str, Tensor], tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"`model\.diffusion_model\.{name}` is missing: this is not a complete Stable Diffusion"):
        import_model(broken(foreign1, tmp_path, remove=UNET + name), tmp_path / "out", prediction="epsilon")


@pytest.mark.parametrize("name", ["my_adapter.weight", UNET + "input_blocks.1.0.adapter.weight"])
def test_a_weight_that_nobody_knows_is_named(foreign1: dict[str, Tensor], tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"`{name}` is not a weight of (Stable Diffusion|this architecture) \(1 in total\)"):
        import_model(broken(foreign1, tmp_path, **{name: torch.zeros(1)}), tmp_path / "out", prediction="epsilon")


def test_a_weight_of_another_shape_is_named(foreign1: dict[str, Tensor], tmp_path: Path) -> None:
    name = UNET + "time_embed.0.bias"
    with pytest.raises(ValueError, match=r"`time_embedding\.linear_1\.bias` has shape \(3,\) instead of"):
        import_model(broken(foreign1, tmp_path, **{name: torch.zeros(3)}), tmp_path / "out", prediction="epsilon")


def test_deeper_transformers_are_another_architecture(foreign1: dict[str, Tensor], tmp_path: Path) -> None:
    name = UNET + "middle_block.1.transformer_blocks.1.norm1.weight"
    with pytest.raises(ValueError, match=r"its transformers have more than one block, as in Stable Diffusion XL"):
        import_model(broken(foreign1, tmp_path, **{name: torch.zeros(3)}), tmp_path / "out", prediction="epsilon")


def test_a_text_width_without_whole_heads_is_told(foreign1: dict[str, Tensor], tmp_path: Path) -> None:
    changes = {key: torch.zeros(77, 40) for key in foreign1 if key.endswith(("positional_embedding", "position_embedding.weight"))}
    with pytest.raises(ValueError, match=r"the width 40 is not a multiple of 64, the channels of an attention head in such files"):
        import_model(broken(foreign1, tmp_path, **changes), tmp_path / "out", prediction="epsilon")


def test_betas_of_another_schedule_are_refused(foreign1: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`betas` are not those of Stable Diffusion"):
        import_model(broken(foreign1, tmp_path, betas=torch.linspace(1e-4, 0.02, 1000)), tmp_path / "out", prediction="epsilon")


def test_an_out_of_another_kind_or_that_is_there_is_refused(sd1: Imported, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"out\.ckpt must end in \.safetensors: the export is a single file"):
        export_model(sd1.folder, tmp_path / "out.ckpt", "single-file")
    (tmp_path / "out.md").write_text("dear")
    with pytest.raises(ValueError, match=r"out\.md exists and is not overwritten"):
        export_model(sd1.folder, tmp_path / "out.safetensors", "single-file")
    assert [path.name for path in tmp_path.iterdir()] == ["out.md"]


def test_a_prediction_that_no_scheduler_has_leaves_nothing(tmp_path: Path) -> None:
    write_model(tmp_path / "model", kind="flow", prediction="flow")
    with pytest.raises(ValueError, match=r"Models with prediction 'flow' cannot be exported"):
        export_model(tmp_path / "model", tmp_path / "out.safetensors", "single-file")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
