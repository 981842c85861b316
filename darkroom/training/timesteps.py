"""Which timesteps training looks at, as functions of (seed, position)."""

from torch import Tensor

from darkroom.config import TrainUnetParams
from darkroom.diffusion.schedule import Schedule
from darkroom.training.draws import normal, quasi_uniform, uniform


def draw_timesteps(params: TrainUnetParams, schedule: Schedule, positions: range) -> Tensor:
    """Whole timesteps 0 .. T-1, (B,).

    "quasi_random" spreads any run of consecutive positions evenly over time, so that the loss of a batch varies less. "lognormal"
    looks most at noise levels near exp(lognormal_mean) (Karras et al. 2022, table 1), which with the schedule `flow` is the
    logit-normal of Esser et al. 2024, section 3.1; levels beyond the schedule's ends count as the ends.
    """
    if params.timesteps == "lognormal":
        log_sigma = params.lognormal_mean + params.lognormal_std * normal((), seed=params.seed, stream="timestep", positions=positions)
        return schedule.sigma_to_t(log_sigma.double().exp()).round().long()
    draw = quasi_uniform if params.timesteps == "quasi_random" else uniform
    return (draw(seed=params.seed, stream="timestep", positions=positions) * schedule.num_train_timesteps).long()
