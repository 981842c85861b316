"""Toy data with an exactly known denoiser and distribution at every noise level."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from darkroom.diffusion.denoiser import Denoise


@dataclass(frozen=True)
class Mixture:
    """A one-dimensional mixture of normal distributions; each element of x is one draw. All fields are float64 (K,)."""

    means: Tensor
    spreads: Tensor
    weights: Tensor

    @classmethod
    def of(cls, means: list[float], spreads: list[float], weights: list[float]) -> "Mixture":
        return cls(*(torch.tensor(values, dtype=torch.float64) for values in (means, spreads, weights)))

    @property
    def mean(self) -> float:
        return float(self.weights @ self.means)

    @property
    def std(self) -> float:
        return float((self.weights @ (self.spreads**2 + self.means**2) - self.mean**2).sqrt())

    def parts(self, sigma: Tensor) -> torch.distributions.Normal:
        """The components of x = x_0 + sigma noise."""
        return torch.distributions.Normal(self.means, (self.spreads**2 + sigma**2).sqrt())

    def log_posterior(self, x: Tensor, sigma: Tensor) -> Tensor:
        """log p(component | x, sigma): x.shape + (K,)."""
        return (self.parts(sigma).log_prob(x[..., None]) + self.weights.log()).log_softmax(-1)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        variance = self.spreads**2
        each = self.means + variance / (variance + sigma**2) * (x[..., None] - self.means)
        return (self.log_posterior(x, sigma).exp() * each).sum(-1)

    def below(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The share of the noised data below x (cumulative distribution)."""
        return (self.parts(sigma).cdf(x[..., None]) * self.weights).sum(-1)

    def quantile(self, share: Tensor, sigma: Tensor) -> Tensor:
        """Inverse of `below`, by bisection."""
        low, high = (torch.full_like(share, bound) for bound in (-20.0 - 20 * float(sigma), 20.0 + 20 * float(sigma)))
        for _ in range(80):
            middle = (low + high) / 2
            under = self.below(middle, sigma) < share
            low, high = torch.where(under, middle, low), torch.where(under, high, middle)
        return (low + high) / 2


def even_shares(num: int) -> Tensor:
    """`num` evenly spaced shares between 0 and 1: the middles of equal parts."""
    return (torch.arange(num, dtype=torch.float64) + 0.5) / num


def counted(denoise: Denoise) -> tuple[Denoise, Callable[[], int]]:
    """The denoiser with a counter, and a function that returns the number of calls."""
    calls = 0

    def counting(x: Tensor, sigma: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return denoise(x, sigma)

    return counting, lambda: calls
