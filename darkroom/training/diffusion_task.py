"""The training task of the U-Net: denoising of cached latents."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from darkroom.config import TrainUnetParams
from darkroom.data.crops import LABEL_UNITS
from darkroom.data.latents import LatentShards
from darkroom.diffusion.denoiser import add_noise, denoised, target
from darkroom.diffusion.schedule import Schedule
from darkroom.models.autoencoder import Autoencoder
from darkroom.models.perceptual import PerceptualDistance
from darkroom.models.unet import UNet2DConditionModel
from darkroom.training.draws import normal, quasi_uniform, shuffled, uniform
from darkroom.training.losses import loss_weights, weighted_squared_error
from darkroom.training.task import VAL_SAMPLES, Batch, chunks

NETWORK_INPUTS = ("x", "timesteps", "context", "labels")  # of a batch, in the order of the U-Net; labels only if it learns them
NUM_QUARTERS = 4  # bands of noise, of equally many timesteps, whose losses are logged


@dataclass(frozen=True)
class RandomDraws:
    """The random part of a batch."""

    timesteps: Tensor  # (B,) whole
    noise: Tensor  # (B, C, h, w), the target is computed from it
    input_noise: Tensor  # (B, C, h, w), in the input of the network: `noise`, or more with input perturbation
    posterior: Tensor  # (B, C, h, w), standard normal, to draw the latents from the posterior
    views: list[int]  # which view of each photo
    dropped: list[bool]  # captions that become the empty prompt


class DiffusionTask:
    """The denoising loss on cached latents: the squared error of the prediction, weighted by timestep (`loss_weights`).

    With `perceptual.weight` there is a second term: how different the decoded denoised latents look from the decoded latents, where the
    noise is at most `perceptual.max_sigma` (Ma et al. 2026, arXiv:2602.02493, section 3.3). At more noise the denoised latents are
    a mean of many images, and to demand sharp features of a mean would cost variety.

    With `augmentation_labels` the U-Net is told the label of each view, so `net` must have been made to learn them.
    """

    def __init__(
        self,
        net: UNet2DConditionModel,
        train: LatentShards,
        val: LatentShards,
        params: TrainUnetParams,
        *,
        vae: Autoencoder,  # has scale and shift of the latents
        schedule: Schedule,
        spread: Tensor | None = None,  # (C,), for prediction "preconditioned"
    ) -> None:
        self.net = self.averaged = net
        self.train = train
        self.val = val
        self.params = params
        self.vae = vae
        self.schedule = schedule
        self.spread = spread
        self.num_samples = len(train)
        self.perceptual = self._perceptual_distance() if params.perceptual.weight else None

    def _perceptual_distance(self) -> PerceptualDistance:
        self.vae.eval().requires_grad_(False)  # gradients flow through it
        size = self.train.latent_shape[-1] * self.vae.config.stride
        return PerceptualDistance.build(self.params.perceptual, size=size, section="train_unet.perceptual")

    def batch(self, positions: range) -> Batch:
        """Every random draw is a function of (seed, position)."""
        seed = self.params.seed
        indices = shuffled(positions, num_samples=self.num_samples, seed=seed)
        noise, input_noise = self._noise(positions)
        draws = RandomDraws(
            timesteps=draw_timesteps(self.params, self.schedule, positions),
            noise=noise,
            input_noise=input_noise,
            posterior=normal(self.train.latent_shape, seed=seed, stream="posterior", positions=positions),
            views=self._views(positions),
            dropped=(uniform(seed=seed, stream="caption", positions=positions) < self.params.caption_dropout).tolist(),
        )
        return self._inputs(self.train, indices, draws)

    def _views(self, positions: range) -> list[int]:
        """One view of each photo, all alike; of two, the second one for numbers below a half."""
        numbers = uniform(seed=self.params.seed, stream="flip", positions=positions).tolist()
        return [self.train.num_views - 1 - int(number * self.train.num_views) for number in numbers]

    def _noise(self, positions: range) -> tuple[Tensor, Tensor]:
        """The noise of the target, with one offset per channel (Guttenberg 2023), and the noise of the input (Ning et al. 2023)."""
        seed, shape = self.params.seed, self.train.latent_shape
        noise = normal(shape, seed=seed, stream="noise", positions=positions)
        if self.params.noise_offset:
            offset = normal((shape[0], 1, 1), seed=seed, stream="noise_offset", positions=positions)
            noise = noise + self.params.noise_offset * offset
        if not self.params.input_perturbation:
            return noise, noise
        return noise, noise + self.params.input_perturbation * normal(shape, seed=seed, stream="input_perturbation", positions=positions)

    def _inputs(self, shards: LatentShards, indices: Sequence[int], draws: RandomDraws) -> Batch:
        params, schedule, timesteps = self.params, self.schedule, draws.timesteps
        moments = torch.from_numpy(shards.moments(indices, draws.views))  # (B, 2, C, h, w)
        latents = self.vae.normalise(moments[:, 0] + moments[:, 1] * draws.posterior)
        gamma = params.p2_gamma if params.loss_weighting == "p2" else params.min_snr_gamma
        batch = {
            "x": add_noise(latents, draws.input_noise, timesteps, schedule, params.prediction, self.spread),
            "target": target(latents, draws.noise, timesteps, schedule, params.prediction, self.spread),
            "timesteps": timesteps,
            "context": torch.from_numpy(shards.context(indices, draws.dropped)),
            "weights": loss_weights(timesteps, schedule, params.prediction, params.loss_weighting, gamma, self.spread),
        }
        if params.augmentation_labels:
            batch["labels"] = torch.from_numpy(shards.labels(indices, draws.views)) / torch.tensor(LABEL_UNITS)
        return batch

    def loss(self, net: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        prediction = _predict(net, batch)
        errors = weighted_squared_error(prediction, batch["target"], batch["weights"])
        loss, logged = errors.mean(), self._by_quarter(errors.detach(), batch["timesteps"])
        if self.perceptual is None:
            return loss, logged
        distance = self._looks_different(self.perceptual, prediction, batch)
        logged |= {"loss": loss.detach(), "perceptual": distance.detach()}
        return loss + self.params.perceptual.weight * distance, logged

    def _looks_different(self, distance: PerceptualDistance, prediction: Tensor, batch: Batch) -> Tensor:
        """The mean over the batch, a scalar; a sample at too high a noise level counts as 0 and costs nothing."""
        vae = self.vae.to(prediction.device)
        sigma = self.schedule.sigmas.to(prediction.device)[batch["timesteps"]]
        near = (sigma <= self.params.perceptual.max_sigma).nonzero()[:, 0]
        x, t = batch["x"][near], batch["timesteps"][near]

        def image(output: Tensor) -> Tensor:
            return vae.decode(vae.denormalise(denoised(output, x, t, self.schedule, self.params.prediction, self.spread)))

        if not len(near):
            return prediction.new_zeros(())
        return distance(image(batch["target"][near]), image(prediction[near].float())).sum() / len(prediction)

    def _by_quarter(self, errors: Tensor, timesteps: Tensor) -> dict[str, Tensor]:
        """Sum and count (2,) of the errors (B,) in each quarter of time; quarter 1 has the least noise."""
        quarter = timesteps * NUM_QUARTERS // self.schedule.num_train_timesteps
        inside = [(quarter == number).to(errors.dtype) for number in range(NUM_QUARTERS)]  # no indexing: the host need not wait
        return {f"loss_quarter_{number}": torch.stack([(errors * part).sum(), part.sum()]) for number, part in enumerate(inside, start=1)}

    def validate(self, device: torch.device) -> dict[str, float]:
        """The loss on held-out latents, in total and by quarter of time; timesteps are spread evenly, the noise is fixed."""
        num = min(len(self.val), VAL_SAMPLES)
        repeats = -(-64 // num)  # at least 64 timesteps, even with few photos
        positions = range(num * repeats)
        timesteps = ((torch.arange(len(positions)) + 0.5) / len(positions) * self.schedule.num_train_timesteps).long()
        errors = []
        for chunk in chunks(len(positions), self.params.micro_batch):  # what fits in training fits here
            noise = normal(self.val.latent_shape, seed=self.params.seed, stream="validation", positions=chunk)
            draws = RandomDraws(
                timesteps[chunk.start : chunk.stop],
                noise,
                noise,
                torch.zeros_like(noise),
                views=[0] * len(chunk),
                dropped=[False] * len(chunk),
            )
            inputs = self._inputs(self.val, [position % num for position in chunk], draws)
            batch = {key: tensor.to(device) for key, tensor in inputs.items()}
            errors.append(weighted_squared_error(_predict(self.net, batch), batch["target"], batch["weights"]).cpu())
        error = torch.cat(errors)
        quarters = {name: float(total / count) for name, (total, count) in self._by_quarter(error, timesteps).items()}
        return {"loss": float(error.mean()), **quarters}


def _predict(net: nn.Module, batch: Batch) -> Tensor:
    prediction: Tensor = net(*(batch[key] for key in NETWORK_INPUTS if key in batch))
    return prediction


def draw_timesteps(params: TrainUnetParams, schedule: Schedule, positions: range) -> Tensor:
    """The timesteps to train on: whole numbers 0 .. T-1, (B,).

    "quasi_random" spreads consecutive positions evenly over time, so that the loss of a batch varies less. "lognormal" draws
    noise levels around exp(lognormal_mean) (Karras et al. 2022, table 1); with the schedule `flow` this is the logit-normal of
    Esser et al. 2024, section 3.1. Noise levels beyond the ends of the schedule become the ends.
    """
    if params.timesteps == "lognormal":
        log_sigma = params.lognormal_mean + params.lognormal_std * normal((), seed=params.seed, stream="timestep", positions=positions)
        return schedule.sigma_to_t(log_sigma.double().exp()).round().long()
    draw = quasi_uniform if params.timesteps == "quasi_random" else uniform
    return (draw(seed=params.seed, stream="timestep", positions=positions) * schedule.num_train_timesteps).long()
