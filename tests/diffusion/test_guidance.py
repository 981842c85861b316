"""Classifier-free guidance by its defining equation; guidance by a classifier against data whose posterior is known."""

import pytest
import torch
from torch import Tensor

from benchmarks.exact import Mixture, counted, even_shares
from darkroom.diffusion.guidance import classifier_free, classifier_guidance, clip_guidance
from darkroom.diffusion.samplers import SAMPLERS
from darkroom.diffusion.schedule import MOST_NOISE, Schedule, noise_levels
from tests.diffusion.gaussian_data import gaussian


class Net:
    """A stand-in for the U-Net that remembers the batch sizes it was called with."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        assert len(x) == len(t) == len(context)
        self.batches.append(len(x))
        return x.sin() * (1 + t.view(-1, 1, 1, 1)) + context.mean((1, 2)).view(-1, 1, 1, 1)


X, T = torch.randn(3, 2, 4, 4), torch.tensor([1.0, 2.0, 3.0])
CONTEXT, EMPTY = torch.randn(3, 5, 6), torch.randn(5, 6)


@pytest.mark.parametrize(("scale", "context"), [(1.0, CONTEXT), (0.0, EMPTY.expand(3, 5, 6))])
def test_scales_one_and_zero_are_the_plain_network_at_one_evaluation(scale: float, context: Tensor) -> None:
    net = Net()
    torch.testing.assert_close(classifier_free(net, CONTEXT, EMPTY, scale)(X, T), Net()(X, T, context))
    assert net.batches == [3]


def test_guidance_is_linear_in_the_scale_and_one_evaluation_of_twice_the_batch() -> None:
    net = Net()
    without, plain = Net()(X, T, EMPTY.expand(3, 5, 6)), Net()(X, T, CONTEXT)
    for scale in (-1.0, 0.5, 1.5, 7.5):
        torch.testing.assert_close(classifier_free(net, CONTEXT, EMPTY, scale)(X, T), without + scale * (plain - without))
    assert net.batches == [6] * 4


def test_a_negative_prompt_of_each_picture_takes_the_place_of_the_empty_one() -> None:
    negative = torch.randn(3, 5, 6)
    plain, avoided = Net()(X, T, CONTEXT), Net()(X, T, negative)
    torch.testing.assert_close(classifier_free(Net(), CONTEXT, negative, 3.0)(X, T), 3 * plain - 2 * avoided)


def test_a_prompt_guided_away_from_itself_is_unguided() -> None:
    torch.testing.assert_close(classifier_free(Net(), CONTEXT, CONTEXT, 9.0)(X, T), Net()(X, T, CONTEXT))


def stretching(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
    """A network whose standard deviation depends on the prompt."""
    return x * context.mean((1, 2)).view(-1, 1, 1, 1) + context.std((1, 2)).view(-1, 1, 1, 1) * x.cos()


@pytest.mark.parametrize("rescale", [0.0, 0.3, 0.7, 1.0])
def test_rescale_is_that_of_diffusers(rescale: float) -> None:
    pipeline = pytest.importorskip("diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion")
    without, plain = stretching(X, T, EMPTY.expand(3, 5, 6)), stretching(X, T, CONTEXT)
    expected = pipeline.rescale_noise_cfg(without + 7.5 * (plain - without), plain, guidance_rescale=rescale)
    torch.testing.assert_close(classifier_free(stretching, CONTEXT, EMPTY, 7.5, rescale=rescale)(X, T), expected)


def test_rescale_of_one_gives_each_picture_the_deviation_of_its_prompt_alone() -> None:
    for scale in (0.0, 4.0):
        guided = classifier_free(stretching, CONTEXT, EMPTY, scale, rescale=1.0)(X, T)
        torch.testing.assert_close(guided.std((1, 2, 3)), stretching(X, T, CONTEXT).std((1, 2, 3)))


@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_outside_of_its_interval_guidance_is_the_prompt_alone_at_one_evaluation(scale: float) -> None:
    net = Net()
    guided = classifier_free(net, CONTEXT, EMPTY, scale, interval=(100.0, 700.0))
    everywhere = classifier_free(Net(), CONTEXT, EMPTY, scale)
    for t, inside in {99.9: False, 100.0: True, 400.0: True, 700.0: True, 700.1: False}.items():
        timesteps = torch.full((3,), t)
        expected = everywhere(X, timesteps) if inside else Net()(X, timesteps, CONTEXT)
        torch.testing.assert_close(guided(X, timesteps), expected)
    assert net.batches == [3, 6, 6, 6, 3]


def test_the_interval_is_that_of_each_picture_in_the_batch() -> None:
    guided = classifier_free(Net(), CONTEXT, EMPTY, 3.0, interval=(1.5, 2.5))(X, T)
    plain, everywhere = Net()(X, T, CONTEXT), classifier_free(Net(), CONTEXT, EMPTY, 3.0)(X, T)
    torch.testing.assert_close(guided, torch.stack([plain[0], everywhere[1], plain[2]]))


@pytest.mark.parametrize("rescale", [-0.1, 1.1])
def test_rescale_beyond_zero_and_one_is_refused(rescale: float) -> None:
    with pytest.raises(ValueError, match=rf"guidance rescale is {rescale}; it must be between 0 \(off\) and 1"):
        classifier_free(Net(), CONTEXT, EMPTY, 3.0, rescale=rescale)


def test_an_interval_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(ValueError, match="guidance interval 700 to 100 ends before it begins"):
        classifier_free(Net(), CONTEXT, EMPTY, 3.0, interval=(700, 100))


SCHEDULE = Schedule.make("scaled_linear", 1000, 0.00085, 0.012)
MIXTURE = Mixture.of(means=[-1.2, 0.4, 1.5], spreads=[0.2, 0.1, 0.3], weights=[0.3, 0.2, 0.5])


def component(index: int) -> Mixture:
    return Mixture(*(values[index : index + 1] for values in (MIXTURE.means, MIXTURE.spreads, torch.ones(3, dtype=torch.float64))))


@pytest.mark.parametrize("label", [0, 1, 2])
@pytest.mark.parametrize("sigma", [0.05, 1.0, 30.0])
def test_a_perfect_classifier_makes_the_denoiser_that_of_the_class(label: int, sigma: float) -> None:
    x, level = MIXTURE.quantile(even_shares(50), torch.tensor(sigma)), torch.tensor(sigma, dtype=torch.float64)
    guided = classifier_guidance(MIXTURE.denoise, lambda x, sigma: MIXTURE.log_posterior(x, sigma)[..., label], scale=1.0)
    torch.testing.assert_close(guided(x, level), component(label).denoise(x, level))


@pytest.mark.parametrize("name", ["dpmpp_2m", "ddpm"])
def test_sampling_guided_by_a_perfect_classifier_draws_the_class_alone(name: str) -> None:
    sigmas, generator = noise_levels(SCHEDULE, 100, "karras"), torch.Generator().manual_seed(0)

    def noise_at(_: int) -> Tensor:
        return torch.randn(4096, generator=generator, dtype=torch.float64)

    guided = classifier_guidance(MIXTURE.denoise, lambda x, sigma: MIXTURE.log_posterior(x, sigma)[..., 2], scale=1.0)
    *_, end = SAMPLERS[name](guided, sigmas[0] * noise_at(0), sigmas, noise_at=noise_at)
    assert end.x.mean().item() == pytest.approx(1.5, abs=0.04)
    assert end.x.std().item() == pytest.approx(0.3, rel=0.05)


def test_classifier_guidance_is_adm_g_in_the_language_of_the_noise() -> None:
    """eps' = eps - sqrt(1 - abar) scale grad log p(y | x_t), x_t variance-preserving (Dhariwal & Nichol 2021, algorithm 2)."""
    sigma, x = torch.tensor(3.0, dtype=torch.float64), torch.randn(2, 1, 4, 4, dtype=torch.float64)
    abar = 1 / (1 + sigma**2)

    def of_x_t(x_t: Tensor) -> Tensor:
        return x_t.sin().sum((1, 2, 3)).sigmoid().log()

    x_t = (x * abar.sqrt()).requires_grad_()
    (gradient,) = torch.autograd.grad(of_x_t(x_t).sum(), x_t)
    epsilon = (x - gaussian(0.5)(x, sigma)) / sigma
    expected = x - sigma * (epsilon - (1 - abar).sqrt() * 4.0 * gradient)
    guided = classifier_guidance(gaussian(0.5), lambda x, sigma: of_x_t(x / (1 + sigma**2).sqrt()), scale=4.0)
    torch.testing.assert_close(guided(x, sigma), expected)


@pytest.mark.parametrize("spread", [0.5, 1.0, 2.0])
def test_a_linear_similarity_tilts_gaussian_data_as_it_should(spread: float) -> None:
    """N(0, d^2) times e^(a x) is N(a d^2, d^2)."""
    sigmas, slope, scale = noise_levels(SCHEDULE, 200, "karras"), 0.3, 2.0
    truth = Mixture.of([scale * slope * spread**2], [spread], [1.0])
    start = truth.quantile(even_shares(20), sigmas[0])
    *_, end = SAMPLERS["heun"](clip_guidance(gaussian(spread), lambda denoised: slope * denoised, scale), start, sigmas)
    torch.testing.assert_close(end.x, truth.quantile(even_shares(20), torch.tensor(0.0)), rtol=0, atol=0.005)


def test_where_there_is_only_noise_similarity_does_not_guide() -> None:
    x = 1e4 * torch.randn(2, 1, 4, 4, dtype=torch.float64)
    guided = clip_guidance(gaussian(0.5), lambda denoised: denoised.sum((1, 2, 3)), 5.0)
    for sigma, differs in {MOST_NOISE * 1.01: False, MOST_NOISE * 0.99: True}.items():
        level = torch.tensor(sigma, dtype=torch.float64)
        assert (not torch.equal(guided(x, level), gaussian(0.5)(x, level))) == differs


def test_guidance_by_gradients_works_where_gradients_are_off_and_leaves_none() -> None:
    x, sigma = torch.randn(2, 1, 4, 4, dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64)
    weight = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
    denoise, calls = counted(lambda x, sigma: weight * gaussian(0.5)(x, sigma))
    by_classifier = classifier_guidance(denoise, lambda x, sigma: x.square().sum((1, 2, 3)), 1.0)
    by_similarity = clip_guidance(denoise, lambda denoised: denoised.square().sum((1, 2, 3)), 1.0)
    with torch.no_grad():
        pictures = by_classifier(x, sigma), by_similarity(x, sigma)
    assert calls() == 2
    for picture in pictures:
        assert not picture.requires_grad
        assert picture.isfinite().all()
    assert weight.grad is None
    assert not x.requires_grad


@pytest.mark.parametrize("sigma", [0.1, 1.0, 10.0])
def test_the_gradient_of_a_picture_does_not_depend_on_its_batch(sigma: float) -> None:
    x, level = sigma * torch.randn(3, 1, 4, 4, dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64)
    guided = clip_guidance(gaussian(0.5), lambda denoised: denoised.sin().sum((1, 2, 3)), 2.0)
    torch.testing.assert_close(guided(x, level)[1:2], guided(x[1:2], level))
