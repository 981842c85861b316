"""Both languages of the schedule say the same, and diffusers agrees."""

import math

import pytest
import torch

from darkroom.diffusion.schedule import KINDS, TERMINAL_SIGNAL, Schedule

ENDS = {"beta_start": 1e-4, "beta_end": 0.02}


@pytest.fixture(
    params=[(kind, zero) for kind in KINDS for zero in (False, True)], ids=lambda item: "-zero".join([item[0]] + [""] * item[1])
)
def schedule(request: pytest.FixtureRequest) -> Schedule:
    return Schedule.make(request.param[0], 1000, **ENDS, zero_terminal_snr=request.param[1])


@pytest.mark.parametrize(
    ("kind", "theirs"),
    [
        ("linear", "linear"),
        ("scaled_linear", "scaled_linear"),
        ("quadratic", "scaled_linear"),
        ("sigmoid", "sigmoid"),
        ("cosine", "squaredcos_cap_v2"),
    ],
)
def test_betas_are_those_of_diffusers(kind: str, theirs: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    oracle = diffusers.DDPMScheduler(1000, beta_schedule=theirs, **ENDS)
    torch.testing.assert_close(Schedule.make(kind, 1000, **ENDS).betas, oracle.betas.double(), rtol=1e-4, atol=1e-7)


def test_quadratic_betas_have_evenly_spaced_square_roots() -> None:
    betas = Schedule.make("quadratic", 5, **ENDS).betas
    steps = betas.sqrt().diff()
    torch.testing.assert_close(steps, steps.mean().expand(4))
    torch.testing.assert_close(betas[[0, -1]], torch.tensor([1e-4, 0.02], dtype=torch.float64))


def test_sigmoid_betas_are_symmetric_about_the_middle_of_their_range() -> None:
    betas = Schedule.make("sigmoid", 101, **ENDS).betas
    torch.testing.assert_close(betas + betas.flip(0), torch.full_like(betas, 1e-4 + 0.02))
    torch.testing.assert_close(betas[50].item(), (1e-4 + 0.02) / 2)


def test_the_cosine_schedule_has_the_alpha_bar_of_its_paper_and_no_beta_above_the_cap() -> None:
    schedule = Schedule.make("cosine", 100, **ENDS)

    def f(t: float) -> float:
        return math.cos((t / 100 + 0.008) / 1.008 * math.pi / 2) ** 2

    for t in (1, 37, 99):  # x_t of the paper counts from 1
        assert schedule.alphas_cumprod[t - 1].item() == pytest.approx(f(t) / f(0))
    assert schedule.betas[-1].item() == 0.999


def test_the_flow_schedule_has_the_straight_mixes_of_rectified_flow() -> None:
    schedule = Schedule.make("flow", 9, **ENDS)
    share = torch.arange(1, 10, dtype=torch.float64) / 10  # of noise, in x = (1 - s) x_0 + s noise
    torch.testing.assert_close(schedule.sigmas, share / (1 - share))
    torch.testing.assert_close(schedule.sigmas * schedule.sigmas.flip(0), torch.ones(9, dtype=torch.float64))


@pytest.mark.parametrize(
    ("kind", "theirs"), [("linear", "linear"), ("scaled_linear", "scaled_linear"), ("sigmoid", "sigmoid"), ("cosine", "squaredcos_cap_v2")]
)
def test_zero_terminal_snr_is_that_of_diffusers_but_for_a_last_sigma_that_is_finite(kind: str, theirs: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    oracle = diffusers.DDPMScheduler(1000, beta_schedule=theirs, rescale_betas_zero_snr=True, **ENDS).alphas_cumprod.double()
    found = Schedule.make(kind, 1000, **ENDS, zero_terminal_snr=True).alphas_cumprod
    torch.testing.assert_close(found.sqrt(), oracle.sqrt(), rtol=0, atol=3e-5)
    assert oracle[-1] == 0
    assert found[-1].sqrt().item() == pytest.approx(TERMINAL_SIGNAL)


@pytest.mark.parametrize("kind", KINDS)
def test_zero_terminal_snr_leaves_the_first_step_as_it_is_and_keeps_the_shape_of_sqrt_abar(kind: str) -> None:
    plain, stretched = (Schedule.make(kind, 1000, **ENDS, zero_terminal_snr=zero) for zero in (False, True))
    torch.testing.assert_close(stretched.betas[0], plain.betas[0])
    slope, expected = stretched.alphas_cumprod.sqrt()[:-1].diff(), plain.alphas_cumprod.sqrt()[:-1].diff()
    torch.testing.assert_close(slope / expected, (slope / expected).mean().expand(998), rtol=1e-6, atol=0)


def test_zero_terminal_snr_of_a_very_long_schedule_still_rises() -> None:
    schedule = Schedule.make("linear", 20_000, **ENDS, zero_terminal_snr=True)
    assert (schedule.sigmas.diff() > 0).all()
    assert schedule.sigmas.isfinite().all()
    assert schedule.alphas_cumprod[-1].sqrt() < TERMINAL_SIGNAL


def test_iterating_q_of_x_t_given_the_step_before_gives_q_of_x_t_given_x_0(schedule: Schedule) -> None:
    mean, variance = 1.0, 0.0  # of x_t, for x_0 = 1
    for t in range(1000):
        mean *= math.sqrt(1 - schedule.betas[t].item())
        variance = (1 - schedule.betas[t].item()) * variance + schedule.betas[t].item()
        assert mean == pytest.approx(schedule.alphas_cumprod[t].sqrt().item(), rel=1e-9)
        assert variance == pytest.approx(1 - schedule.alphas_cumprod[t].item(), rel=1e-9)


def test_sigma_squared_is_the_noise_to_signal_ratio(schedule: Schedule) -> None:
    alphas_cumprod = schedule.alphas_cumprod
    torch.testing.assert_close(1 / (1 + schedule.sigmas**2), alphas_cumprod, rtol=1e-12, atol=0)
    torch.testing.assert_close(schedule.alphas.cumprod(0), alphas_cumprod)
    torch.testing.assert_close(schedule.snr * schedule.sigmas**2, torch.ones(1000, dtype=torch.float64))
    torch.testing.assert_close(schedule.alphas_cumprod_previous * schedule.alphas, alphas_cumprod)
    assert (schedule.sigmas.diff() > 0).all()


def test_everything_is_float64(schedule: Schedule) -> None:
    for values in (schedule.betas, schedule.alphas, schedule.alphas_cumprod, schedule.sigmas):
        assert values.dtype == torch.float64
        assert values.isfinite().all()


def test_sigma_to_t_and_t_to_sigma_are_inverse_at_whole_and_fractional_timesteps(schedule: Schedule) -> None:
    t = torch.tensor([[0.0, 0.25, 1.0], [499.0, 998.75, 999.0]], dtype=torch.float64)
    torch.testing.assert_close(schedule.sigma_to_t(schedule.t_to_sigma(t)), t, rtol=0, atol=1e-6)
    torch.testing.assert_close(schedule.t_to_sigma(torch.arange(1000)), schedule.sigmas)
    torch.testing.assert_close(schedule.sigma_to_t(schedule.sigmas[17]), torch.tensor(17.0, dtype=torch.float64))


def test_a_fractional_timestep_is_linear_in_log_sigma(schedule: Schedule) -> None:
    middle = (schedule.sigmas[10] * schedule.sigmas[11]).sqrt()
    assert schedule.sigma_to_t(middle).item() == pytest.approx(10.5)


def test_noise_levels_beyond_the_schedule_get_its_ends(schedule: Schedule) -> None:
    assert schedule.sigma_to_t(torch.tensor([0.0, 1e9])).tolist() == [0.0, 999.0]


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.1), (0.2, 0.1), (0.1, 1.0), (-0.1, 0.1)])
def test_betas_that_do_not_rise_within_zero_and_one_are_refused(start: float, end: float) -> None:
    with pytest.raises(ValueError, match=rf"beta_start \({start}\) and beta_end \({end}\) must satisfy"):
        Schedule.make("linear", 10, beta_start=start, beta_end=end)


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="Unknown schedule 'exponential'; expected one of linear, quadratic"):
        Schedule.make("exponential", 10, **ENDS)
