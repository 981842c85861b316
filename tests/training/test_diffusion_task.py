"""The batches of the diffusion task: what each option does to them, and that position and seed decide everything."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from darkroom.config import TrainUnetParams
from darkroom.data.latents import LatentShards, caption_key, write_captions, write_latents
from darkroom.diffusion.denoiser import PREDICTIONS, add_noise, target
from darkroom.diffusion.schedule import Schedule
from darkroom.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from darkroom.models.layers import reset_parameters
from darkroom.models.unet import UNet2DConditionModel, UNetConfig
from darkroom.params_file import load_params
from darkroom.provenance import write_index
from darkroom.training.diffusion_task import DiffusionTask
from darkroom.training.draws import uniform
from darkroom.training.losses import WEIGHTINGS, loss_weights
from tests.tiny_run import write_params

SHAPE = (4, 8, 8)
NUM = 6
LABELS = [(0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0), (0.04, -0.08, 0.15, 0.0), (-0.04, -0.08, 0.15, 1.0)]


def write_cache(folder: Path, views: int) -> Path:
    """Posteriors of standard deviation 0, so that the latents of a photo are its mean."""
    folder.mkdir(exist_ok=True)
    means = np.random.default_rng(0).standard_normal((NUM, views, 1, *SHAPE), np.float32).astype(np.float16).astype(np.float32)
    photos = [(f"photo{n}", "a cat", LABELS[:views], np.concatenate([means[n], np.zeros_like(means[n])], axis=1)) for n in range(NUM)]
    tokens = np.ones((3, 8), np.float32)
    splits = {split: write_latents(folder, split=split, samples=photos, samples_per_shard=10) for split in ("train", "val")}
    splits["captions"] = write_captions(folder, [("a cat", tokens), ("", 0 * tokens)], samples_per_shard=10)
    content = {
        "splits": splits,
        "latent_shape": SHAPE,
        "context_shape": (3, 8),
        "views": {"train": views, "val": views},
        "empty_caption_key": caption_key(""),
    }
    write_index(folder, stage="cache_latents", params={}, inputs={}, content=content)
    return folder


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("latents"), views=1)


@pytest.fixture
def make(latents, tmp_path):
    """A task with changed parameters."""

    def task(schedule: dict[str, Any] | None = None, cache: Path = latents, **changes: Any) -> DiffusionTask:
        kind = {"kind": "cosine", "num_train_timesteps": 1000, "beta_start": 0.001, "beta_end": 0.01, "zero_terminal_snr": False}
        write_params(tmp_path / "params.yaml", train_unet={"schedule": kind | (schedule or {}), **changes})
        params = load_params(tmp_path / "params.yaml")["train_unet"]
        assert isinstance(params, TrainUnetParams)
        return DiffusionTask(net(), LatentShards(cache, "train"), LatentShards(cache, "val"), params, vae=vae(),
                             schedule=Schedule.make(**params.schedule.model_dump()))  # fmt: skip

    return task


def vae() -> AutoencoderKL:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(AutoencoderKLConfig(latent_channels=4, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
                                           scaling_factor=1.0, **blocks))  # fmt: skip


def net() -> UNet2DConditionModel:
    unet = UNet2DConditionModel(UNetConfig.from_levels(block_out_channels=[16], attention=[True], layers_per_block=1, channels_per_head=8,
                                                       norm_num_groups=4, latent_channels=4, latent_size=8, context_dim=8))  # fmt: skip
    unet.initialise(0)
    return unet


def drawn(task: DiffusionTask, positions: range) -> tuple[torch.Tensor, torch.Tensor]:
    """x_0 and the plain noise of these positions, from two schedules: of x = a x_0 + b noise, two equations make both known."""
    batch = task.batch(positions)
    assert task.params.prediction == "sample"
    sigma = task.schedule.sigmas[batch["timesteps"]].view(-1, 1, 1, 1)
    return batch["target"], ((batch["x"] * (1 + sigma**2).sqrt() - batch["target"]) / sigma).float()


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("kind", ["cosine", "flow"])
def test_a_batch_is_noised_latents_and_what_the_network_should_say_of_them(make, prediction, kind):
    latents, noise = drawn(make(prediction="sample", schedule={"kind": kind}), range(8))
    task = make(prediction=prediction, schedule={"kind": kind})
    batch = task.batch(range(8))
    t = batch["timesteps"]
    torch.testing.assert_close(batch["x"], add_noise(latents, noise, t, task.schedule, prediction), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(batch["target"], target(latents, noise, t, task.schedule, prediction), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", WEIGHTINGS)
def test_a_batch_has_the_weights_that_params_name(make, kind):
    task = make(loss_weighting=kind, min_snr_gamma=3.0, p2_gamma=0.5)
    batch = task.batch(range(8))
    gamma = 0.5 if kind == "p2" else 3.0
    torch.testing.assert_close(batch["weights"], loss_weights(batch["timesteps"], task.schedule, "v_prediction", kind, gamma))


@pytest.mark.parametrize("changes", [{}, {"timesteps": "quasi_random", "noise_offset": 0.1, "input_perturbation": 0.1}])
def test_a_sample_does_not_depend_on_the_batch_it_is_drawn_in(make, tmp_path, changes):
    task = make(cache=write_cache(tmp_path / "latents", views=4), augmentation_labels=True, **changes)
    whole, parts = task.batch(range(8)), [task.batch(range(3)), task.batch(range(3, 8))]
    for key, values in whole.items():
        torch.testing.assert_close(values, torch.cat([part[key] for part in parts]), rtol=0, atol=0)


def test_offset_noise_shifts_whole_channels_and_is_asked_for(make):
    plain, shifted = (make(prediction="epsilon", noise_offset=offset).batch(range(400)) for offset in (0.0, 0.5))
    shift = shifted["target"] - plain["target"]
    torch.testing.assert_close(shift, shift[:, :, :1, :1].expand_as(shift), rtol=0, atol=1e-5)
    assert shift[:, :, 0, 0].std().item() == pytest.approx(0.5, rel=0.05)
    assert shift.mean().abs() < 0.04
    assert torch.corrcoef(shift[:, :, 0, 0].T).fill_diagonal_(0).abs().max() < 0.2
    sigma = make().schedule.sigmas[plain["timesteps"]].view(-1, 1, 1, 1)
    torch.testing.assert_close(shifted["x"] - plain["x"], (shift * sigma / (1 + sigma**2).sqrt()).float(), rtol=1e-3, atol=1e-4)


def test_input_perturbation_is_seen_and_not_asked_for(make):
    plain, perturbed = (make(input_perturbation=size).batch(range(64)) for size in (0.0, 0.1))
    torch.testing.assert_close(perturbed["target"], plain["target"], rtol=0, atol=0)
    sigma = make().schedule.sigmas[plain["timesteps"]].view(-1, 1, 1, 1)
    seen = (perturbed["x"] - plain["x"]) * (1 + sigma**2).sqrt() / sigma
    assert seen.std().item() == pytest.approx(0.1, rel=0.03)
    assert torch.corrcoef(torch.stack([seen.flatten(), plain["x"].flatten()]))[0, 1].abs() < 0.03


@torch.no_grad()
def test_validation_is_on_plain_noise(make):
    plain, changed = make(), make(noise_offset=0.5, input_perturbation=0.5, timesteps="lognormal")
    assert plain.validate(torch.device("cpu")) == changed.validate(torch.device("cpu"))


def test_latents_with_one_view_are_trained_on_as_they_are(make, latents):
    targets = make(prediction="sample").batch(range(NUM))["target"]
    means = torch.from_numpy(LatentShards(latents, "train").moments(range(NUM), [0] * NUM)[:, 0])
    assert all((row == means).flatten(1).all(1).any() for row in targets)


def drawn_views(task: DiffusionTask, num: int) -> torch.Tensor:
    """The view of each of the first `num` positions, found by its latents."""
    assert task.params.prediction == "sample"
    targets = task.batch(range(num))["target"]
    every = [torch.from_numpy(task.train.moments(range(NUM), [view] * NUM)[:, 0]) for view in range(task.train.num_views)]
    found = torch.stack([(targets[:, None] == means).flatten(2).all(2).any(1) for means in every], 1)  # (num, V)
    assert (found.sum(1) == 1).all()
    return found.float().argmax(1)


def test_all_views_of_a_photo_are_drawn_alike(make, tmp_path):
    views = drawn_views(make(prediction="sample", cache=write_cache(tmp_path / "latents", views=4)), 1200)
    assert torch.bincount(views).tolist() == pytest.approx([300] * 4, abs=60)  # four standard deviations
    assert torch.corrcoef(torch.stack([views[:-6].float(), views[6:].float()]))[0, 1].abs() < 0.12  # anew in each epoch


def test_of_two_views_the_mirrored_one_is_drawn_for_numbers_below_a_half(make, tmp_path):
    task = make(prediction="sample", cache=write_cache(tmp_path / "latents", views=2))
    expected = uniform(seed=task.params.seed, stream="flip", positions=range(50)) < 0.5
    assert (drawn_views(task, 50) == expected).all()


def test_each_photo_comes_with_the_label_of_its_view_in_units_of_about_one(make, tmp_path):
    task = make(prediction="sample", cache=write_cache(tmp_path / "latents", views=4), augmentation_labels=True)
    labels = torch.tensor([(0, 0, 0, 0), (0, 0, 0, 1), (0.5, -1, 1, 0), (-0.5, -1, 1, 1.0)])
    torch.testing.assert_close(task.batch(range(40))["labels"], labels[drawn_views(task, 40)])
    assert "labels" not in make(cache=tmp_path / "latents").batch(range(8))


def test_labels_are_told_to_the_network_and_reach_its_weights(make, tmp_path):
    task = make(cache=write_cache(tmp_path / "latents", views=4), augmentation_labels=True)
    task.net.learn_labels(4)
    reset_parameters(task.net, seed=0)  # no zeros: everything reaches the prediction
    batch = task.batch(range(8))
    loss, _ = task.loss(task.net, batch)
    loss.backward()
    assert task.net.augmentation_embedding.weight.grad.any(0).all()
    without, _ = task.loss(task.net, {**batch, "labels": torch.zeros(8, 4)})
    assert loss.item() != without.item()


@torch.no_grad()
def test_validation_is_the_same_with_and_without_labels(make, tmp_path):
    plain, told = (make(cache=write_cache(tmp_path / "latents", views=4), augmentation_labels=on) for on in (False, True))
    told.net.learn_labels(4)
    for task in (plain, told):
        reset_parameters(task.net, seed=0)  # no zeros: everything reaches the prediction; the layer for labels is the last one
    assert told.validate(torch.device("cpu")) == plain.validate(torch.device("cpu"))


@torch.no_grad()
def test_validation_is_on_the_first_view(make, latents, tmp_path):
    task, other = (make(cache=write_cache(tmp_path / "latents", views=4)) for _ in range(2))
    read = other.val.moments
    other.val.moments = lambda indices, views: read(indices, [0] * len(views))
    assert task.validate(torch.device("cpu")) == other.validate(torch.device("cpu"))


def test_the_loss_is_the_weighted_squared_error(make):
    task = make()
    batch = task.batch(range(4))
    loss, _ = task.loss(lambda x, t, context: batch["target"] + 2.0, batch)
    assert loss.item() == pytest.approx(4 * batch["weights"].mean().item(), rel=1e-5)


def test_the_losses_of_the_quarters_add_up_to_the_loss_and_each_has_its_own_timesteps(make):
    task = make()
    batch = task.batch(range(40))
    one = torch.ones((), requires_grad=True)
    loss, logs = task.loss(lambda x, t, context: batch["target"] + one + t.view(-1, 1, 1, 1), batch)
    assert list(logs) == [f"loss_quarter_{number}" for number in (1, 2, 3, 4)]
    totals = torch.stack(list(logs.values()))
    assert totals[:, 1].sum() == 40
    assert totals[:, 0].sum().item() == pytest.approx(40 * loss.item(), rel=1e-5)
    errors = batch["weights"] * (1.0 + batch["timesteps"]) ** 2
    second = (batch["timesteps"] >= 250) & (batch["timesteps"] < 500)
    assert logs["loss_quarter_2"].tolist() == pytest.approx([errors[second].sum().item(), second.sum().item()], rel=1e-5)
    assert not logs["loss_quarter_2"].requires_grad


@torch.no_grad()
def test_the_quarters_of_the_held_out_loss_are_equally_large_parts_of_it(make):
    found = make().validate(torch.device("cpu"))
    quarters = [found[f"loss_quarter_{number}"] for number in (1, 2, 3, 4)]
    assert sum(quarters) / 4 == pytest.approx(found["loss"], rel=0.05)
    assert len(set(quarters)) == 4


# ---- the perceptual term

LOOK = {"weight": 0.5, "layers": ["features.1"], "max_sigma": 1.0}


class Says(nn.Module):
    """A network that gives the target, `wrong` by a constant for samples of this mask."""

    def __init__(self, batch: dict[str, torch.Tensor], wrong: torch.Tensor) -> None:
        super().__init__()
        self.off = nn.Parameter(torch.tensor(0.5))
        self.answer, self.wrong = batch["target"], wrong.float().view(-1, 1, 1, 1)

    def forward(self, *_: torch.Tensor) -> torch.Tensor:
        return self.answer + self.off * self.wrong


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_denoised_latents_that_look_wrong_cost_where_there_is_little_noise(make, prediction):
    task = make(prediction=prediction, perceptual=LOOK)
    batch = task.batch(range(32))
    near = task.schedule.sigmas[batch["timesteps"]] <= 1.0
    assert 0 < near.sum() < 32

    def perceptual(wrong: torch.Tensor) -> float:
        return float(task.loss(Says(batch, wrong), batch)[1]["perceptual"])

    assert perceptual(torch.zeros(32)) == pytest.approx(0, abs=1e-9)
    assert perceptual(~near) == pytest.approx(0, abs=1e-9)
    assert perceptual(near) > 1e-4
    first = near & (near.cumsum(0) == 1)
    assert perceptual(near) == pytest.approx(perceptual(first) + perceptual(near & ~first), rel=1e-4)  # a mean over the whole batch


def test_the_perceptual_term_is_added_with_its_weight_and_the_curves_keep_the_loss_of_the_validation(make):
    task = make(perceptual=LOOK)
    batch = task.batch(range(16))
    network = Says(batch, torch.ones(16))
    total, logged = task.loss(network, batch)
    plain, without = make(perceptual={"weight": 0.0}).loss(network, batch)
    assert float(logged["loss"]) == plain.item()
    assert total.item() == pytest.approx(plain.item() + 0.5 * float(logged["perceptual"]))
    assert "perceptual" not in without


def test_the_gradient_of_the_perceptual_term_goes_through_the_decoder_to_the_network_alone(make):
    def gradient(weight: float) -> torch.Tensor:
        torch.manual_seed(0)  # the same decoder
        task = make(perceptual=LOOK | {"weight": weight})
        batch = task.batch(range(16))
        network = Says(batch, torch.ones(16))
        task.loss(network, batch)[0].backward()
        assert not any(weight.grad is not None for weight in task.vae.parameters())
        assert network.off.grad is not None
        return network.off.grad

    plain, once, twice = (gradient(weight) for weight in (0.0, 0.5, 1.0))
    assert abs(once - plain) > 1e-5
    torch.testing.assert_close(twice - plain, 2 * (once - plain))


def test_a_batch_of_much_noise_has_no_perceptual_term(make):
    task = make(perceptual=LOOK | {"max_sigma": 1e-6})
    batch = task.batch(range(4))
    total, logged = task.loss(Says(batch, torch.ones(4)), batch)
    assert float(logged["perceptual"]) == 0
    assert float(total.detach()) == float(logged["loss"])


def test_a_classifier_that_photos_are_too_small_for_is_named_by_its_parameter(make):
    with pytest.raises(ValueError, match=r"train_unet\.perceptual: images of 16 px are too small"):
        make(perceptual={"weight": 0.5})
