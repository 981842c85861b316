"""Timesteps as functions of (seed, position): each distribution, and that a batch does not matter."""

from typing import Any

import pytest
import torch
from torch import Tensor

from darkroom.config import TrainUnetParams
from darkroom.diffusion.schedule import Schedule
from darkroom.params_file import load_params
from darkroom.training.diffusion_task import draw_timesteps
from darkroom.training.draws import quasi_uniform
from tests.tiny_run import write_params

FLOW = Schedule.make("flow", 1000, 0.1, 0.2)


@pytest.fixture
def draw(tmp_path):
    def timesteps(positions: range, schedule: Schedule = FLOW, **changes: Any) -> Tensor:
        write_params(tmp_path / "params.yaml", train_unet=changes)
        params = load_params(tmp_path / "params.yaml")["train_unet"]
        assert isinstance(params, TrainUnetParams)
        return draw_timesteps(params, schedule, positions)

    return timesteps


@pytest.mark.parametrize("kind", ["uniform", "quasi_random", "lognormal"])
def test_timesteps_are_whole_depend_on_the_seed_and_not_on_the_batch(draw, kind):
    whole = draw(range(64), timesteps=kind)
    assert whole.dtype == torch.int64
    assert whole.min() >= 0
    assert whole.max() <= 999
    parts = torch.cat([draw(range(10), timesteps=kind), draw(range(10, 64), timesteps=kind)])
    torch.testing.assert_close(whole, parts, rtol=0, atol=0)
    assert not torch.equal(whole, draw(range(64), timesteps=kind, seed=1))


@pytest.mark.parametrize("kind", ["uniform", "quasi_random"])
def test_every_part_of_time_is_drawn_alike(draw, kind):
    shares = torch.histc(draw(range(4000), timesteps=kind).float(), 4, 0, 1000) / 4000
    torch.testing.assert_close(shares, torch.full((4,), 0.25), rtol=0, atol=0.03)


@pytest.mark.parametrize("start", [0, 7, 10**12])
def test_any_run_of_quasi_random_timesteps_covers_time_evenly(draw, start):
    """The largest gap of n multiples of the golden ratio is below 1.9 / n (three-distance theorem); of n draws it is near log(n) / n."""
    numbers = quasi_uniform(seed=3, stream="timestep", positions=range(start, start + 64)).sort().values
    gaps = torch.cat([numbers, numbers[:1] + 1]).diff()
    assert gaps.max() < 1.9 / 64
    assert gaps.min() > 0.35 / 64
    assert draw(range(start, start + 64), timesteps="quasi_random").unique().numel() == 64


def test_lognormal_timesteps_have_a_normal_log_sigma(draw):
    t = draw(range(4000), timesteps="lognormal", lognormal_mean=-0.5, lognormal_std=1.2)
    log_sigma = FLOW.sigmas[t].log()
    assert log_sigma.mean().item() == pytest.approx(-0.5, abs=0.06)
    assert log_sigma.std().item() == pytest.approx(1.2, abs=0.05)
    skewness = ((log_sigma - log_sigma.mean()) / log_sigma.std()).pow(3).mean().item()
    assert abs(skewness) < 0.15


def test_with_the_flow_schedule_lognormal_is_the_logit_normal_of_the_share_of_noise(draw):
    share = (draw(range(4000), timesteps="lognormal") + 1) / 1001
    assert share.median().item() == pytest.approx(0.5, abs=0.02)
    assert torch.quantile(share, 0.8413).logit().item() == pytest.approx(1, abs=0.07)  # one standard deviation up


def test_lognormal_levels_beyond_the_schedule_count_as_its_ends(draw):
    t = draw(range(200), timesteps="lognormal", lognormal_mean=0.0, lognormal_std=100.0)
    assert {0, 999} <= set(t.tolist())
