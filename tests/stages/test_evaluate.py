"""The stage on real shards and tiny untrained models; where its numbers must be true, the sampler is replaced by one we know."""

import io
import json
import math
import re
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from darkroom.data.shards import ImageShards
from darkroom.demo.adherence import ADHERENCE
from darkroom.demo.toy_cats import toy_cat
from darkroom.diffusion.diffusion_config import DiffusionConfig
from darkroom.diffusion.schedule import Schedule
from darkroom.evaluation.alignment import encode_texts
from darkroom.evaluation.glossary import GLOSSARY
from darkroom.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from darkroom.models.classifier import Classifier
from darkroom.models.clip import ClipTowers
from darkroom.models.unet import UNet2DConditionModel, UNetConfig
from darkroom.models.weights import load_model, save_model
from darkroom.pixels import to_float
from darkroom.provenance import read_index, write_index
from darkroom.sampling.text_to_image import TextToImage
from darkroom.tracking.tracker import NullTracker
from stages.evaluate import choose_sources
from tests.tiny_run import make_project, run_stage, write_params

CLIP = {"embed_dim": 16, "image_size": 16, "patch_size": 8, "vision_width": 32, "vision_layers": 1,
        "text_width": 32, "text_layers": 1, "context_length": 24}  # fmt: skip
NUM_CATS = 120
RECOGNISED = {"recognised", "recognised_full", "recognised_reconstructions"}


def make_models(data: Path, *, side: int = 16) -> None:
    for name in ("clip", "vae", "unet"):
        (data / name).mkdir()
    ClipTowers.build(CLIP, seed=0).save(data / "clip")
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = AutoencoderKL(AutoencoderKLConfig(latent_channels=4, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, **blocks))
    vae.initialise(0)
    save_model(vae, data / "vae")
    (data / "vae" / "likelihood.json").write_text('{"likelihood": "gaussian", "scale": 0.1}')
    sizes = {"norm_num_groups": 4, "latent_channels": 4, "context_dim": 32, "latent_size": side // 2, "channels_per_head": 8}
    unet = UNet2DConditionModel(UNetConfig.from_levels(block_out_channels=[16], attention=[True], layers_per_block=1, **sizes))
    unet.initialise(0)
    save_model(unet, data / "unet")
    schedule = Schedule.make("cosine", 1000, 0.001, 0.01)
    DiffusionConfig(schedule=schedule, prediction="v_prediction", sampler="ddim", steps=2, guidance_scale=1.0).save(data / "unet")
    (data / "unet" / "curves").mkdir()
    (data / "unet" / "curves" / "train.csv").write_text("step,loss\n0,1.0\n10,0.5\n")
    (data / "unet" / "curves" / "val.csv").write_text("step,loss\n10,0.6\n")
    write_indexes(data)


def write_indexes(data: Path) -> None:
    inputs = {"shards": read_index(data / "shards")}
    for name in ("clip", "vae", "unet"):
        write_index(data / name, stage=f"train_{name}", params={}, inputs=inputs, content={})
        inputs[name] = read_index(data / name)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DARKROOM_TRACKING", "off")
        make_project(root, num_cats=NUM_CATS)
        run_stage("ingest", root)
    make_models(root / "data")
    return root


@pytest.fixture
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DARKROOM_TRACKING", "off")
    return Path(shutil.copytree(made, tmp_path / "project"))


def evaluate(root: Path, **changes: Any) -> dict[str, Any]:
    write_params(root / "params.yaml", evaluate={"features": {"kind": "squeezenet"}} | changes)
    run_stage("evaluate", root)
    metrics: dict[str, Any] = json.loads((root / "data" / "report" / "metrics.json").read_text())
    return metrics


def numbers_of(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name != "num_samples" and not isinstance(value, str)}


def draw(monkeypatch: pytest.MonkeyPatch, images: np.ndarray) -> list[dict[str, Any]]:
    """Replaces the sampler by one that hands out `images`, one per seed; the calls it gets are returned."""
    calls: list[dict[str, Any]] = []

    def sample(self: TextToImage, prompts: list[str], *, seeds: list[int], **kwargs: Any) -> np.ndarray:
        calls.append({"prompts": prompts, "seeds": seeds} | kwargs)
        return images[[seed % len(images) for seed in seeds]]

    monkeypatch.setattr(TextToImage, "sample", sample)
    return calls


def photos(root: Path, split: str) -> ImageShards:
    return ImageShards(root / "data" / "shards", split)


def in_order_of_prompts(held_out: ImageShards, train: ImageShards) -> np.ndarray:
    """The held-out photos that belong to the prompts of a sampler that draws one picture a photo."""
    return held_out.images(choose_sources(held_out.captions, set(train.captions), len(held_out)))


class Pixels:
    """In the place of the shipped classifier: its features are the colours and the edges of 4 x 4 cells. It takes no time."""

    name = "pixels-0"
    identity: ClassVar = {"arch": "pixels"}

    def features_and_scores(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        edges = np.abs(np.diff(images.astype(np.float32), axis=2, prepend=0)) * 4
        cells = [part.reshape(len(part), 4, part.shape[1] // 4, 4, -1, 3).mean(axis=(2, 4)) / 64 - 2 for part in (images, edges)]
        features = np.concatenate(cells, axis=1).reshape(len(images), 96).astype(np.float32)
        return features, np.eye(1000, dtype=np.float32)[(features.mean(axis=1) > 0).astype(int)]


@pytest.fixture
def squeezenet() -> None:
    """For tests that wait for the shipped classifier itself, 25 ms an image."""


@pytest.fixture(autouse=True)
def pixels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "squeezenet" not in request.fixturenames:
        monkeypatch.setattr(Classifier, "shipped", lambda device=None: Pixels())


def test_a_perfect_sampler_gets_the_numbers_of_the_photos(project, monkeypatch):
    held_out, train = photos(project, "val"), photos(project, "train")
    draw(monkeypatch, in_order_of_prompts(held_out, train))
    metrics = evaluate(project, num_samples=len(held_out))
    assert abs(metrics["kid"]) <= 2 * metrics["kid_standard_error"] + 1e-9  # without the pairs of a photo and itself both are 0
    assert 0.4 < metrics["frechet_distance"] / metrics["frechet_distance_photos"] < 2.5
    assert metrics["precision"] == metrics["recall"] > 0.8
    assert metrics["prompt_adherence"] == metrics["prompt_adherence_photos"] == 1
    assert metrics["clip_score"] == pytest.approx(metrics["clip_score_photos"], abs=1e-4)
    assert metrics["copied_fraction"] <= metrics["copied_fraction_photos"] + 1 / len(held_out)


def test_other_cats_of_the_same_kind_are_near_the_floor_and_no_copies(project, monkeypatch):
    drawn = [toy_cat(index, size=16, seed=99)[0] for index in range(60)]
    draw(monkeypatch, np.stack([np.asarray(Image.open(io.BytesIO(png))) for png in drawn]))
    metrics = evaluate(project, num_samples=60)
    assert metrics["copied_fraction_low"] <= 0.01
    assert abs(metrics["kid"]) < 2 * metrics["kid_standard_error"]
    assert 0.4 < metrics["frechet_distance"] / metrics["frechet_distance_photos"] < 2.5


def test_a_sampler_that_repeats_training_photos_is_found_out(project, monkeypatch):
    train = photos(project, "train")
    draw(monkeypatch, train.images(range(len(train))))
    metrics = evaluate(project, num_samples=30, num_grid=8)
    assert metrics["copied_fraction"] == 1
    pairs = np.asarray(Image.open(project / "data" / "report" / "pictures" / "nearest.png"))
    np.testing.assert_array_equal(pairs[:16, :16], pairs[:16, 18:34])  # the sample beside its training photo


def test_noise_is_far_away_and_shows_no_coat(project, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    draw(monkeypatch, noise)
    metrics = evaluate(project, num_samples=40)
    assert metrics["kid"] > 2 * metrics["kid_standard_error"]
    assert metrics["frechet_distance"] > 2.5 * metrics["frechet_distance_photos"]
    assert metrics["prompt_adherence"] <= 0.05
    assert metrics["prompt_adherence_photos"] == 1


def test_cats_with_the_coats_of_other_prompts_adhere_by_chance_only(project, monkeypatch):
    held_out, train = photos(project, "val"), photos(project, "train")
    images = in_order_of_prompts(held_out, train)
    draw(monkeypatch, images[::-1])
    assert evaluate(project, num_samples=len(images))["prompt_adherence"] < 0.5


def test_the_sampler_is_asked_as_params_say(project, monkeypatch):
    calls = draw(monkeypatch, photos(project, "train").images(range(20)))
    sampling = {"sampler": "heun", "spacing": "karras", "steps": 7, "guidance_scale": 1.5}
    evaluate(project, num_samples=9, seed=5, batch_size=3, sampling=sampling)
    assert [call["seeds"] for call in calls] == [[5, 6, 7], [8, 9, 10], [11, 12, 13]]
    assert all({key: call[key] for key in sampling} == sampling for call in calls)
    assert {prompt for call in calls for prompt in call["prompts"]} <= set(photos(project, "val").captions)


def test_prompts_are_held_out_captions_with_those_that_training_never_saw_first():
    held_out = ["seen", "new", "seen", "newer"]
    assert choose_sources(held_out, {"seen", "other"}, 2) == [1, 3]
    assert choose_sources(held_out, {"seen", "other"}, 6) == [1, 3, 0, 2, 1, 3]


def test_texts_are_encoded_in_their_order_and_equal_ones_equally(project):
    clip = ClipTowers.load(project / "data" / "clip")
    texts = ["a pink cat", "a cat", "a pink cat", "a dog"]
    found = encode_texts(clip, texts, batch_size=2)
    np.testing.assert_allclose(found, clip.encode_texts(texts).numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found[0], found[2])


def test_two_runs_give_the_same_report_and_batches_do_not_matter(project):
    first = evaluate(project, num_samples=8)
    page = (project / "data" / "report" / "report.html").read_bytes()
    assert evaluate(project, num_samples=8) == first
    assert (project / "data" / "report" / "report.html").read_bytes() == page
    other, texts = evaluate(project, num_samples=8, batch_size=3), ("features", "eval_key", "unfit_because")
    assert [other.pop(key) for key in texts] == [first.pop(key) for key in texts]
    assert other == pytest.approx(first, rel=1e-4, abs=1e-6)


def test_metrics_are_finite_named_in_the_glossary_and_shown(project):
    metrics = evaluate(project, num_samples=8)
    numbers = numbers_of(metrics)
    assert set(GLOSSARY | ADHERENCE) - set(numbers) == RECOGNISED  # the classes of an untrained eye say nothing
    assert all(math.isfinite(value) for value in numbers.values())
    assert metrics["num_samples"] == 8
    html = (project / "data" / "report" / "report.html").read_text()
    for key, entry in (GLOSSARY | ADHERENCE).items():
        if key in RECOGNISED:
            continue
        for text in (f"<span>{entry.name}</span>", entry.meaning, entry.fooled_by):
            assert text in html.replace("&#39;", "'")
    assert read_index(project / "data" / "report")["content"]["eval_key"] == metrics["eval_key"]


def test_the_bounds_add_up_and_follow_the_likelihood_of_the_vae(project):
    metrics = evaluate(project, num_samples=8)
    parts = [metrics[f"latent_bits_{name}"] for name in ("prior", "chain", "decoder")]
    assert sum(parts) == pytest.approx(metrics["latent_bits_total"])
    assert 0 <= metrics["latent_bits_prior"] < 0.01  # the cosine schedule ends in noise
    assert 0 < metrics["photo_bits_per_dim_standard_error"] < 1
    nats = -metrics["vae_elbo_nats"] / (3 * 16 * 16)
    assert metrics["vae_bits_per_dim"] == pytest.approx(nats / math.log(2) + math.log2(127.5))
    (project / "data" / "vae" / "likelihood.json").write_text('{"likelihood": "laplace", "scale": 0.5}')
    write_indexes(project / "data")
    assert evaluate(project, num_samples=8)["vae_elbo_nats"] != metrics["vae_elbo_nats"]


def test_a_network_that_says_v_is_zero_knows_latents_as_plain_normal(project):
    """Then D(x, sigma) = x / (1 + sigma^2), and the bound is tight: the cross-entropy of N(0, 1)."""
    unet = load_model(UNet2DConditionModel, project / "data" / "unet")
    nn.init.zeros_(unet.conv_out.weight)
    nn.init.zeros_(unet.conv_out.bias)
    save_model(unet, project / "data" / "unet")
    write_indexes(project / "data")
    vae = load_model(AutoencoderKL, project / "data" / "vae")
    held_out = photos(project, "val")
    with torch.no_grad():
        mean, std = vae.encode(to_float(held_out.images(range(len(held_out)))))
    square = vae.normalise(mean).square() + (std * vae.config.scaling_factor).square()
    expected = (0.5 * math.log(2 * math.pi) + 0.5 * square.mean().item()) / math.log(2)
    assert evaluate(project, num_samples=8)["latent_bits_total"] == pytest.approx(expected, abs=0.15)


def test_the_report_tells_what_it_was_measured_with_and_shows_pictures_and_curves(project):
    metrics = evaluate(project, num_samples=8, num_grid=4)
    html = (project / "data" / "report" / "report.html").read_text()
    unseen = sum(caption not in photos(project, "train").captions for caption in photos(project, "val").captions)
    samples = f"8, of 8 captions of held-out photos; {min(unseen, 8)} have a prompt that no training photo has"
    for fact in (
        samples,
        metrics["features"],
        "ddim, 2 trailing steps, guidance scale 2",
        "0 to 7",
        metrics["eval_key"][:12],
        "held-out photos, each at 3 noise levels and the lowest one",
        "Loss of train_unet",
    ):
        assert fact in html
    assert "Loss of train_vae" not in html  # it has no curve
    assert len(re.findall(r"<img[^>]*>", html)) > 4 + 2 + 2
    assert not re.search(r"https?://|<script", re.sub(r"base64,[^\"]*", "", html))
    pictures = project / "data" / "report" / "pictures"
    assert sorted(path.stem for path in pictures.iterdir()) == [
        "coats", "nearest", "reconstructions", "samples", "worst", "worst_captions", "worst_photos"
    ]  # fmt: skip
    assert Image.open(pictures / "samples.png").size == (4 * 16 + 3 * 2, 16)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"num_samples": 9},
        {"sampling": {"sampler": "euler", "spacing": "trailing", "steps": 2, "guidance_scale": 2.0}},
        {"sampling": {"sampler": "ddim", "spacing": "karras", "steps": 2, "guidance_scale": 2.0}},
        {"sampling": {"sampler": "ddim", "spacing": "trailing", "steps": 3, "guidance_scale": 2.0}},
        {"sampling": {"sampler": "ddim", "spacing": "trailing", "steps": 2, "guidance_scale": 1.0}},
    ],
)
def test_the_comparison_key_changes_with_everything_that_is_drawn_differently(project, monkeypatch, change):
    draw(monkeypatch, photos(project, "train").images(range(10)))
    base = evaluate(project, num_samples=8)["eval_key"]
    assert evaluate(project, **{"num_samples": 8} | change)["eval_key"] != base


def test_the_comparison_key_changes_with_the_prompts(project, monkeypatch):
    draw(monkeypatch, photos(project, "train").images(range(10)))
    base = evaluate(project, num_samples=8)["eval_key"]
    monkeypatch.setattr("stages.evaluate.choose_sources", lambda *_: [7, 6, 5, 4, 3, 2, 1, 0])
    assert evaluate(project, num_samples=8)["eval_key"] != base


def test_the_comparison_key_does_not_change_with_what_is_only_shown_or_how_it_is_batched(project, monkeypatch):
    draw(monkeypatch, photos(project, "train").images(range(10)))
    base = evaluate(project, num_samples=8)["eval_key"]
    assert evaluate(project, num_samples=8, num_grid=2, batch_size=5)["eval_key"] == base


def test_captions_that_are_no_toy_cats_give_a_report_without_adherence(tmp_path, monkeypatch, made):
    monkeypatch.setenv("DARKROOM_TRACKING", "off")
    root = tmp_path / "project"
    make_project(root, num_cats=60, ingest={"side": 16, "num_workers": 1, "val_fraction": 0.25, "captions": ["text_file"]})
    run_stage("ingest", root)
    make_models(root / "data")
    metrics = evaluate(root, num_samples=8)
    assert "prompt_adherence" not in metrics
    assert "clip_score_chance" not in metrics  # one caption for all: there is no other prompt
    assert "Whether samples fit their prompts is not measured" in (root / "data" / "report" / "report.md").read_text()
    assert not (root / "data" / "report" / "pictures" / "coats.png").exists()


@pytest.mark.usefixtures("squeezenet")
def test_distances_can_be_measured_in_the_shipped_or_in_a_local_classifier(project):
    torch.manual_seed(0)
    weights = project / "squeezenet.safetensors"
    save_file(models.get_model("squeezenet1_1", weights=None).state_dict(), weights)
    local = {"kind": "torchvision", "arch": "squeezenet1_1", "weights": str(weights), "side": 32}
    runs = [evaluate(project, num_samples=8, features=features) for features in ({"kind": "squeezenet"}, local, {"kind": "clip"})]
    assert [metrics["features"].split("-")[0] for metrics in runs] == ["squeezenet1_0", "squeezenet1_1", "clip"]
    assert len({metrics["eval_key"] for metrics in runs}) == 3


def test_too_few_held_out_photos_for_the_neighbours_are_refused_and_leave_no_report(project):
    with pytest.raises(ValueError, match=r"at least 61 independent images on each side, but there are \d+\. Hold out"):
        evaluate(project, num_samples=64, num_neighbours=60)
    assert not (project / "data" / "report").exists()


def test_fewer_than_a_hundred_held_out_photos_give_numbers_and_no_decision(project):
    metrics = evaluate(project, num_samples=8)
    assert metrics["unfit_because"].endswith("add photos, or hold out more (ingest.val_fraction).")
    assert "kid" in metrics


def test_another_model_draws_the_same_prompts_and_seeds_and_stands_beside_this_one(project, made):
    metrics = evaluate(project, num_samples=8, num_grid=4, champion=str(made / "data"))
    text = (project / "data" / "report" / "report.md").read_text()
    (row,) = [line for line in text.split("## Beside the champion")[1].splitlines() if line.startswith("| KID")]
    ours, theirs = (float(cell.split()[0]) for cell in row.strip("| ").split(" | ")[1:])
    assert ours == theirs == pytest.approx(metrics["kid"], rel=0.01)  # it is the same model
    assert "Beside the champion" in (project / "data" / "report" / "report.html").read_text()
    assert evaluate(project, num_samples=8)["eval_key"] == metrics["eval_key"]


def test_a_champion_of_another_size_is_refused(project, made, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(made / "data" / "shards", other / "shards")
    make_models(other, side=32)
    with pytest.raises(ValueError, match=r"evaluate.champion: .*other draws 32 x 32 px, this model 16 x 16 px; leave it empty"):
        evaluate(project, num_samples=8, champion=str(other))


class Recorder(NullTracker):
    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self.images: dict[str, np.ndarray] = {}
        self.artifacts: list[str] = []
        self.description = ""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.metrics |= metrics

    def log_image(self, name: str, image: np.ndarray, step: int | None = None) -> None:
        self.images[name] = image

    def describe(self, text: str) -> None:
        self.description = text

    def log_artifact(self, path: Path, folder: str = "") -> None:
        assert path.is_file()
        self.artifacts.append(path.name)


def test_numbers_pictures_and_the_page_go_to_the_tracker(project, monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr("darkroom.stage.stage_run", lambda *_, **__: nullcontext(recorder))
    metrics = evaluate(project, num_samples=8)
    assert recorder.metrics == {name: metrics[name] for name in GLOSSARY | ADHERENCE if name not in RECOGNISED}
    assert set(recorder.images) == {"samples", "nearest", "reconstructions", "coats", "worst", "worst_captions", "worst_photos"}
    assert all(image.dtype == np.uint8 for image in recorder.images.values())
    assert recorder.artifacts == ["report.html"]
    assert recorder.description == (project / "data" / "report" / "report.md").read_text()
