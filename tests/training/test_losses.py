import pytest
import torch
from torch.distributions import Laplace, Normal
from torch.distributions import kl_divergence as torch_kl
from torch.nn import functional as F

from darkroom.training.losses import contrastive_loss, kl_divergence, negative_log_likelihood, weighted_squared_error


@pytest.mark.parametrize(("likelihood", "distribution"), [("gaussian", Normal), ("laplace", Laplace)])
def test_likelihood_is_that_of_the_distribution(likelihood, distribution):
    images, mean = torch.randn(2, 3, 3, 4, 4).unbind(0)
    nats = negative_log_likelihood(images, mean, likelihood=likelihood, scale=0.3)
    torch.testing.assert_close(nats, -distribution(mean, 0.3).log_prob(images).flatten(1).sum(1))


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
