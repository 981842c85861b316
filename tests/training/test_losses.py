import pytest
import torch
from torch import Tensor
from torch.distributions import Laplace, MultivariateNormal, Normal
from torch.distributions import kl_divergence as torch_kl
from torch.nn import functional as F

from darkroom.training.losses import (
    LEAST_PROBABILITY,
    adaptive_weight,
    contrastive_loss,
    hinge_loss,
    kl_divergence,
    negative_log_likelihood,
    weighted_squared_error,
)


@pytest.mark.parametrize(("likelihood", "distribution"), [("gaussian", Normal), ("laplace", Laplace)])
def test_likelihood_is_that_of_the_distribution(likelihood, distribution):
    images, mean = torch.randn(2, 3, 3, 4, 4).unbind(0)
    nats = negative_log_likelihood(images, mean, likelihood=likelihood, scale=0.3)
    torch.testing.assert_close(nats, -distribution(mean, 0.3).log_prob(images).flatten(1).sum(1))


def test_bernoulli_is_the_cross_entropy_of_black_and_white_in_the_range_of_pictures():
    images, mean = torch.rand(3, 3, 4, 4), 0.01 + 0.98 * torch.rand(3, 3, 4, 4)
    nats = negative_log_likelihood(2 * images - 1, 2 * mean - 1, likelihood="bernoulli", scale=None)
    expected = F.binary_cross_entropy(mean, images, reduction="none")
    torch.testing.assert_close(nats, expected.flatten(1).sum(1))


def test_bernoulli_of_a_picture_out_of_range_leads_back_and_is_no_more_than_a_probability():
    mean = torch.linspace(-1.5, 1.5, 301, dtype=torch.float64).reshape(-1, 1, 1, 1).requires_grad_()
    black, white = (
        negative_log_likelihood(torch.full_like(mean, colour), mean, likelihood="bernoulli", scale=None) for colour in (-1.0, 1.0)
    )
    assert ((-black).exp() + (-white).exp()).max() <= 1 + 1e-12
    outside = mean.detach().flatten().abs() > 1
    assert outside.any()
    towards_white = torch.autograd.grad(white.sum(), mean)[0].flatten()
    assert (towards_white[outside & (mean.flatten() < 0)] <= -0.5 / LEAST_PROBABILITY + 1e-9).all()  # as steep as at the edge
    assert (towards_white[outside & (mean.flatten() > 0)] == 0).all()  # as white as it can be


@pytest.mark.parametrize(
    ("likelihood", "best"),
    [("gaussian", lambda e: e.square().mean().sqrt()), ("laplace", lambda e: e.abs().mean())],
    ids=["gaussian", "laplace"],
)
def test_the_best_scale_is_the_error_itself(likelihood, best):
    images, mean = torch.randn(2, 3, 3, 4, 4, dtype=torch.float64).unbind(0)
    scale = best(images - mean).requires_grad_()
    nats = negative_log_likelihood(images, mean, likelihood=likelihood, scale=scale).sum()
    torch.testing.assert_close(torch.autograd.grad(nats, scale)[0], torch.tensor(0.0, dtype=torch.float64), atol=1e-9, rtol=0)
    for other in (0.9 * scale, 1.1 * scale):
        assert negative_log_likelihood(images, mean, likelihood=likelihood, scale=other.detach()).sum() > nats


def test_a_scale_may_be_a_number_or_a_tensor():
    images, mean = torch.randn(2, 3, 3, 4, 4).unbind(0)
    for likelihood in ("gaussian", "laplace"):
        numbers = negative_log_likelihood(images, mean, likelihood=likelihood, scale=0.3)
        torch.testing.assert_close(negative_log_likelihood(images, mean, likelihood=likelihood, scale=torch.tensor(0.3)), numbers)


def test_kl_in_closed_form_equals_its_monte_carlo_estimate():
    mean, logvar = torch.randn(2, 1, 4, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).unbind(0)
    noise = torch.randn(200_000, 4, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    posterior = Normal(mean, (logvar / 2).exp())
    z = mean + noise * (logvar / 2).exp()
    draws = (posterior.log_prob(z) - Normal(0.0, 1.0).log_prob(z)).flatten(1).sum(1)
    error = draws.std() / len(draws) ** 0.5
    assert float(error) < 0.02
    assert abs(float(draws.mean() - kl_divergence(mean, logvar))) < 4 * error


def posterior_points(mean: Tensor, std: Tensor) -> Tensor:
    """Equally weighted z (2 D, D) around a normal distribution, over which averages of quadratic functions are exact."""
    steps = torch.diag(std) * len(mean) ** 0.5
    return torch.cat([mean + steps, mean - steps])


def probabilistic_pca() -> tuple[Tensor, Tensor, float, Tensor]:
    """x = W z + m + s noise (Tipping & Bishop 1999) for W (12, 3) with orthogonal columns: W, m, s and one picture x (1, 3, 2, 2)."""
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(12, 3, generator=generator, dtype=torch.float64))[0]
    loadings = axes * torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)
    offset, x = torch.randn(2, 12, generator=generator, dtype=torch.float64)
    return loadings, offset, 0.3, x.reshape(1, 3, 2, 2)


def negative_elbo(mean: Tensor, std: Tensor) -> Tensor:
    loadings, offset, scale, x = probabilistic_pca()
    z = posterior_points(mean, std)
    decoded = (z @ loadings.T + offset).reshape(-1, 3, 2, 2)
    nats = negative_log_likelihood(x.expand_as(decoded), decoded, likelihood="gaussian", scale=scale)
    return nats.mean() + kl_divergence(mean[None], 2 * std.log()[None])[0]


def exact_posterior() -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (Tipping & Bishop 1999, equation 8); diagonal because the columns of W are orthogonal."""
    loadings, offset, scale, x = probabilistic_pca()
    precision = loadings.T @ loadings + scale**2 * torch.eye(3, dtype=torch.float64)
    return torch.linalg.solve(precision, loadings.T @ (x.flatten() - offset)), scale * precision.diagonal() ** -0.5


def test_the_bound_of_a_linear_gaussian_model_is_tight_at_its_exact_posterior():
    loadings, offset, scale, x = probabilistic_pca()
    marginal = MultivariateNormal(offset, loadings @ loadings.T + scale**2 * torch.eye(12, dtype=torch.float64))
    torch.testing.assert_close(negative_elbo(*exact_posterior()), -marginal.log_prob(x.flatten()))


@pytest.mark.parametrize(("shift", "factor"), [(0.2, 1.0), (0.0, 1.5), (0.0, 0.5), (-0.1, 0.9)])
def test_the_bound_of_another_posterior_is_looser_by_its_divergence_from_the_exact_one(shift, factor):
    mean, std = exact_posterior()
    gap = torch_kl(Normal(mean + shift, factor * std), Normal(mean, std)).sum()
    torch.testing.assert_close(negative_elbo(mean + shift, factor * std), negative_elbo(mean, std) + gap)


def test_the_hinge_loss_asks_for_a_margin_of_one_on_each_side():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0])
    torch.testing.assert_close(hinge_loss(real, fake), torch.tensor(((0 + 0.5 + 2) / 3 + (0 + 1) / 2) / 2))


def test_the_adaptive_weight_gives_both_losses_gradients_of_one_length_at_the_last_layer():
    last = torch.randn(4, 3, requires_grad=True)
    features, target = torch.randn(5, 4), torch.randn(5, 3)
    rebuilt, judged = 7 * (features @ last - target).square().mean(), (features @ last).tanh().mean()
    weight = adaptive_weight(rebuilt, judged, last)
    wanted, given = (torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (rebuilt, weight * judged))
    torch.testing.assert_close(given, wanted, rtol=1e-4, atol=0)
    assert last.grad is None
    assert not weight.requires_grad


def test_the_adaptive_weight_is_bounded_where_the_discriminator_says_nothing():
    last = torch.ones(2, requires_grad=True)
    assert float(adaptive_weight(1e6 * last.sum(), 0 * last.sum(), last)) == 1e4


def test_kl_is_that_of_two_normals():
    mean, logvar = torch.randn(2, 5, 4, 2, 2).unbind(0)
    expected = torch_kl(Normal(mean, (logvar / 2).exp()), Normal(0.0, 1.0)).flatten(1).sum(1)
    torch.testing.assert_close(kl_divergence(mean, logvar), expected)


def test_contrastive_loss_with_distinct_captions_is_that_of_clip():
    images, texts = F.normalize(torch.randn(2, 6, 8), dim=-1).unbind(0)
    logits = 10 * images @ texts.T
    expected = (F.cross_entropy(logits, torch.arange(6)) + F.cross_entropy(logits.T, torch.arange(6))) / 2
    torch.testing.assert_close(contrastive_loss(images, texts, torch.tensor(10.0), torch.eye(6, dtype=torch.bool)), expected)


def test_equal_captions_do_not_push_their_photos_apart():
    features = F.normalize(torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]]), dim=-1)
    same = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]], dtype=torch.bool)
    loss = contrastive_loss(features, features, torch.tensor(100.0), same)
    torch.testing.assert_close(loss, torch.tensor(2.0).log())  # the entropy of two equal positives: nothing left to learn


def test_weights_scale_the_error_of_their_sample():
    error = weighted_squared_error(torch.ones(2, 1, 2, 2), torch.zeros(2, 1, 2, 2), torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(error, torch.tensor([1.0, 3.0]))
