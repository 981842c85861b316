"""Stages that go on from a model that stands already, in a folder or in the registry; and photos with one caption for all."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from darkroom import open_model
from darkroom.diffusion.diffusion_config import DiffusionConfig
from darkroom.models.autoencoder_kl import AutoencoderKL
from darkroom.models.clip import ClipTowers
from darkroom.models.unet import UNet2DConditionModel
from darkroom.models.weights import load_model, save_model
from darkroom.params_file import read_yaml
from darkroom.provenance import read_index
from darkroom.sampling.text_to_image import TextToImage
from darkroom.training.clip_task import ClipTask
from darkroom.training.task import Batch
from darkroom.training.vae_task import VaeTask
from tests.tiny_run import make_project, run_stage, write_params


def change_vae(folder: Path) -> None:
    vae = load_model(AutoencoderKL, folder)
    torch.nn.init.ones_(vae.decoder.conv_in.weight)
    save_model(vae, folder)


def change_clip(folder: Path) -> None:
    clip = ClipTowers.load(folder)
    torch.nn.init.ones_(clip.model.text_projection)
    clip.save(folder)


@pytest.mark.parametrize(
    ("stage", "task", "beginning", "change"),
    [
        ("train_vae", VaeTask, {"init": "imported/vae"}, change_vae),
        ("train_clip", ClipTask, {"mode": "finetune", "pretrained": "imported/clip"}, change_clip),
    ],
)
def test_a_checkpoint_begun_from_other_weights_is_not_gone_on_with(
    stage: str,
    task: type[VaeTask | ClipTask],
    beginning: dict[str, str],
    change: Callable[[Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DARKROOM_TRACKING", "off")
    monkeypatch.chdir(tmp_path)
    out = stage.removeprefix("train_")
    make_project(tmp_path, **{stage: {"steps": 1}})
    for name in ("ingest", stage):
        run_stage(name, tmp_path)
    shutil.copytree(Path("data") / out, Path("imported") / out)
    write_params(tmp_path / "params.yaml", **{stage: beginning})
    batch = task.batch

    def dies(self: VaeTask | ClipTask, positions: range) -> Batch:
        if positions.start >= 2 * 8:
            raise RuntimeError("power cut")
        return batch(self, positions)

    with monkeypatch.context() as patch:
        patch.setattr(task, "batch", dies)
        with pytest.raises(RuntimeError, match="power cut"):
            run_stage(stage, tmp_path)
    assert list((tmp_path / ".scratch" / stage).rglob("step-00000002"))
    before = read_index(tmp_path / "data" / out)["content"]["init"]  # of the run from nothing

    change(tmp_path / "imported" / out)
    run_stage(stage, tmp_path)
    found = read_index(tmp_path / "data" / out)
    run_stage(stage, tmp_path)  # a finished run leaves no checkpoint: this one starts anew
    assert read_index(tmp_path / "data" / out)["files"] == found["files"]
    assert found["content"]["init"] != before == ""


# ---- a registered version


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project in which models:/cats@champion is version 3; its folder."""
    monkeypatch.setenv("DARKROOM_TRACKING", "off")
    monkeypatch.chdir(tmp_path)
    make_project(tmp_path, train_clip={"steps": 1}, train_vae={"steps": 1}, train_unet={"steps": 1})
    for name in ("ingest", "train_clip", "train_vae", "cache_latents", "train_unet"):
        run_stage(name, tmp_path)
    for part in ("clip", "vae", "unet"):
        shutil.copytree(Path("data") / part, Path("registry") / part)

    def version(uri: str) -> tuple[str, Path]:
        assert uri == "models:/cats@champion"
        return "models:/cats/3", tmp_path / "registry"

    monkeypatch.setattr(open_model, "registered_version", version)
    return tmp_path / "registry"


def test_every_part_can_start_from_a_registered_version_which_the_index_names(registered: Path, tmp_path: Path) -> None:
    champion = {"init": "models:/cats@champion", "steps": 0}
    clip = {"mode": "pretrained", "pretrained": "models:/cats@champion"}
    write_params(tmp_path / "params.yaml", train_clip=clip, train_vae=champion, train_unet=champion)
    for name in ("train_clip", "train_vae", "cache_latents", "train_unet"):
        run_stage(name, tmp_path)
    for part in ("clip", "vae", "unet"):
        index, before = (read_index(folder / part) for folder in (tmp_path / "data", registered))
        assert index["content"]["version"] == "models:/cats/3"
        name = next(name for name in before["files"] if name.endswith("model.safetensors"))
        assert index["files"][name] == before["files"][name]
    vae = read_index(tmp_path / "data" / "vae")
    assert vae["params"]["init"] == "models:/cats@champion"
    assert vae["content"]["init"] == vae["content"]["weights"] == read_index(registered / "vae")["content"]["weights"]


# ---- one caption for all photos


@pytest.fixture
def alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose photos all have the caption of the template, in shards."""
    monkeypatch.setenv("DARKROOM_TRACKING", "off")
    monkeypatch.chdir(tmp_path)
    make_project(tmp_path, ingest={"captions": [], "caption_template": "a cat"})
    run_stage("ingest", tmp_path)
    return tmp_path


def test_clip_is_not_trained_on_one_caption_and_says_so(alike: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_stage("train_clip", alike)
    content = read_index(alike / "data" / "clip")["content"]
    params = read_index(alike / "data" / "clip")["params"]
    assert content["random_weights"]
    assert content["weights"] == ClipTowers.build(params["model"], seed=params["seed"]).fingerprint()
    assert "training photos have the caption 'a cat', so CLIP has nothing to tell apart and is not trained" in caplog.text


def test_captions_that_the_text_encoder_reads_the_same_are_one(alike: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_params(alike / "params.yaml", ingest={"captions": [], "caption_template": "A  CAT " + "meow " * 40 + "{stem}"})
    for name in ("ingest", "train_clip"):
        run_stage(name, alike)
    assert read_index(alike / "data" / "clip")["content"]["random_weights"]


def test_a_pretrained_clip_is_not_finetuned_on_one_caption(alike: Path) -> None:
    ClipTowers.build(new_clip(alike), seed=5).save(alike / "imported")
    write_params(alike / "params.yaml", train_clip={"mode": "finetune", "pretrained": "imported"})
    run_stage("train_clip", alike)
    content = read_index(alike / "data" / "clip")["content"]
    assert content["weights"] == content["init"] != ""
    assert not content["random_weights"]


def new_clip(root: Path) -> dict[str, int]:
    model: dict[str, int] = read_yaml(root / "params.yaml")["train_clip"]["model"]
    return model


def test_captions_that_differ_train_clip(alike: Path) -> None:
    write_params(alike / "params.yaml")
    for name in ("ingest", "train_clip"):
        run_stage(name, alike)
    content = read_index(alike / "data" / "clip")["content"]
    assert not content["random_weights"]
    assert content["weights"] != ClipTowers.build(new_clip(alike), seed=0).fingerprint()


def test_a_model_of_one_caption_draws_every_prompt_as_it_and_says_so_once(
    alike: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_params(
        alike / "params.yaml",
        ingest={"captions": [], "caption_template": "a cat"},
        cache_latents={"gate": {"max_frechet": 0.0}},  # cannot be measured in features of random weights
    )
    for name in ("train_clip", "train_vae", "cache_latents", "train_unet"):
        run_stage(name, alike)
    assert "frechet" not in read_index(alike / "data" / "latents")["content"]["reconstructions"]
    assert "steer nothing, and guidance is off" in caplog.text
    model = TextToImage.load(alike / "data")
    assert model.config.only_caption == "a cat"
    caplog.clear()
    batches = []
    forward = UNet2DConditionModel.forward

    def counts(self: UNet2DConditionModel, x: Tensor, *inputs: Tensor) -> Tensor:
        batches.append(len(x))
        return forward(self, x, *inputs)

    monkeypatch.setattr(UNet2DConditionModel, "forward", counts)
    own = model.sample(["a cat"], seeds=[1])
    assert not caplog.records
    others = [model.sample([prompt], seeds=[1], guidance_scale=scale) for prompt, scale in (("a dog", 1.0), ("two birds", 7.0))]
    for other in others:
        np.testing.assert_array_equal(other, own)
    assert set(batches) == {1}  # no second prediction to guide away from
    assert [record.message for record in caplog.records] == [
        "This model was trained with one caption, `a cat`, so prompts steer nothing: all are drawn as this one."
    ]


def test_prompts_go_on_steering_a_unet_that_knew_captions_before(registered: Path, tmp_path: Path) -> None:
    ingest = {"captions": [], "caption_template": "a cat"}
    parts: dict[str, dict[str, object]] = {
        "train_clip": {"mode": "pretrained", "pretrained": "registry/clip"},
        "train_vae": {"init": "registry/vae", "steps": 0},
    }
    write_params(tmp_path / "params.yaml", ingest=ingest, train_unet={"init": "registry/unet"}, **parts)
    for name in ("ingest", "train_clip", "train_vae", "cache_latents", "train_unet"):
        run_stage(name, tmp_path)
    assert DiffusionConfig.load(tmp_path / "data" / "unet").only_caption is None

    write_params(tmp_path / "params.yaml", ingest=ingest, **parts)  # from new weights
    run_stage("train_unet", tmp_path)
    shutil.copytree("data/unet", "narrow")
    for steps, template, expected in ((0, "a cat", "a cat"), (1, "a dog", "a dog"), (0, "a dog", "a cat"), (1, "a {stem}", None)):
        write_params(
            tmp_path / "params.yaml", ingest=ingest | {"caption_template": template}, train_unet={"init": "narrow", "steps": steps}, **parts
        )
        for name in ("ingest", "train_clip", "train_vae", "cache_latents", "train_unet"):
            run_stage(name, tmp_path)
        assert DiffusionConfig.load(tmp_path / "data" / "unet").only_caption == expected
