"""Error of each sampler for its number of network evaluations, on data with a known denoiser and distribution.

The data is a one-dimensional mixture of normal distributions; the schedule is that of Stable Diffusion. The error is the Wasserstein-1
distance between samples and data, in standard deviations of the data. Samplers of the ODE start from even quantiles of the noised data,
so that chance plays no role. Samplers of the SDE draw 65536 numbers; the table names the error that chance alone gives.
"""

from functools import cache

import torch
from torch import Tensor

from benchmarks.exact import Mixture, counted, even_shares
from darkroom.diffusion.samplers import SAMPLERS
from darkroom.diffusion.samplers.ode import ode_adaptive
from darkroom.diffusion.schedule import SPACINGS, Schedule, noise_levels

SCHEDULE = Schedule.make("scaled_linear", 1000, 0.00085, 0.012)
DATA = Mixture.of(means=[-1.2, 0.4, 1.5], spreads=[0.2, 0.1, 0.3], weights=[0.3, 0.2, 0.5])
BUDGETS = (5, 10, 20, 40, 80)  # network evaluations
TWO_A_STEP = ("heun", "predictor_corrector")  # except the last step, which takes one
OF_THE_ODE = ("ddim", "euler", "heun", "dpmpp_2m", "unipc")  # all others draw noise, but for `ode_adaptive`
NUM_DRAWS, NUM_QUANTILES, NUM_ADAPTIVE = 65536, 1024, 32


def error(name: str, evaluations: int, spacing: str) -> float:
    sigmas = noise_levels(SCHEDULE, (evaluations + 1) // 2 if name in TWO_A_STEP else evaluations, spacing)
    num = NUM_QUANTILES if name in OF_THE_ODE else NUM_DRAWS
    generator = torch.Generator().manual_seed(0)
    start = quantiles(num, float(sigmas[0]))[torch.randperm(num, generator=generator)]
    *_, end = SAMPLERS[name](DATA.denoise, start, sigmas, noise_at=lambda _: torch.randn(num, generator=generator, dtype=torch.float64))
    return distance(end.x)


def adaptive(tolerance: float) -> tuple[int, float]:
    """Network evaluations per sample, and the error."""
    sigmas = noise_levels(SCHEDULE, 2, "karras")
    denoise, calls = counted(DATA.denoise)
    *_, end = ode_adaptive(denoise, quantiles(NUM_ADAPTIVE, float(sigmas[0])), sigmas, tolerance=tolerance)
    return round((calls() - len(sigmas)) / NUM_ADAPTIVE) + len(sigmas), distance(end.x)


@cache
def quantiles(num: int, sigma: float) -> Tensor:
    return DATA.quantile(even_shares(num), torch.tensor(sigma, dtype=torch.float64))


def distance(x: Tensor) -> float:
    """Wasserstein-1 distance to the data, in its standard deviations."""
    return float((x.sort().values - quantiles(len(x), 0.0)).abs().mean()) / DATA.std


def chance() -> float:
    """The error of draws from the data itself."""
    shares = torch.rand(NUM_DRAWS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return distance(DATA.quantile(shares, torch.tensor(0.0, dtype=torch.float64)))


def print_tables() -> None:
    print("\nError of `euler` divided by the error of each sampler, at the same number of network evaluations (karras):\n")
    print_table(
        "sampler", {name: [error(name, budget, "karras") for budget in BUDGETS] for name in SAMPLERS if name != "ode_adaptive"}, "euler"
    )
    print(f"\nFor samplers of the SDE, chance alone gives an error of {chance():.1e}. `ode_adaptive`:", end=" ")
    print(
        "; ".join("tolerance {}: {} evaluations, error {:.1e}".format(tolerance, *adaptive(tolerance)) for tolerance in (1e-2, 1e-3, 1e-5))
    )
    print("\nError of `dpmpp_2m` with trailing divided by its error with each spacing:\n")
    print_table("spacing", {spacing: [error("dpmpp_2m", budget, spacing) for budget in BUDGETS] for spacing in SPACINGS}, "trailing")


def print_table(what: str, errors: dict[str, list[float]], reference: str) -> None:
    """Print the reference as numbers and the others as ratios; above 1 is better."""
    print(f"| {what} | {' | '.join(map(str, BUDGETS))} |")
    print(f"|---|{'---:|' * len(BUDGETS)}")
    print(f"| `{reference}`, error | {' | '.join(f'{value:.1e}' for value in errors[reference])} |")
    for name, row in errors.items():
        if name != reference:
            ratios = (base / value for base, value in zip(errors[reference], row, strict=True))
            print(f"| `{name}` | {' | '.join(f'{ratio:.2g}' for ratio in ratios)} |", flush=True)
