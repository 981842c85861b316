"""Data whose denoiser and whose distribution at every noise level are known exactly."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from darkroom.diffusion.denoiser import Denoise


@dataclass(frozen=True)
class Mixture:
    """A mixture of normal distributions on a line; each element of x is one draw of its own. All fields (K,) float64."""

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
        """Of x = x_0 + sigma noise."""
        return torch.distributions.Normal(self.means, (self.spreads**2 + sigma**2).sqrt())

    def log_posterior(self, x: Tensor, sigma: Tensor) -> Tensor:
        """log p(component | x, sigma): x.shape + (K,)."""
        return (self.parts(sigma).log_prob(x[..., None]) + self.weights.log()).log_softmax(-1)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        variance = self.spreads**2
        each = self.means + variance / (variance + sigma**2) * (x[..., None] - self.means)
        return (self.log_posterior(x, sigma).exp() * each).sum(-1)

    def below(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The share of the noised data that is below x."""
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
    """`num` shares of a distribution, each in the middle of its part of it."""
    return (torch.arange(num, dtype=torch.float64) + 0.5) / num


def counted(denoise: Denoise) -> tuple[Denoise, Callable[[], int]]:
    """The same denoiser, and the number of its calls so far."""
    calls = 0

    def counting(x: Tensor, sigma: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return denoise(x, sigma)

    return counting, lambda: calls
