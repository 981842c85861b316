"""Draws the figures of theory.md with the library's own functions: `python docs/draw_figures.py` fills docs/pictures.

The data are toys whose exact denoiser is known (a mixture of normal distributions), so no network is trained. Where noise is drawn,
it comes from a fixed seed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import torch
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image
from torch import Tensor

from darkroom.diffusion.bound import chain_term, decoder_term, prior_term
from darkroom.diffusion.denoiser import Denoise, make_denoiser
from darkroom.diffusion.guidance import classifier_free
from darkroom.diffusion.samplers import SAMPLERS, Sampler
from darkroom.diffusion.samplers.ode import euler, heun
from darkroom.diffusion.samplers.stochastic import ddpm
from darkroom.diffusion.schedule import Schedule, noise_levels

PAPER, INK, FAINT = "#fbfaf6", "#2b2d33", "#8d9099"  # opaque paper: the figures read alike on white and on black pages
COLOURS = ("#00688b", "#d1495b", "#e09f1f", "#5b8c5a", "#7b5ea7", "#8a5a44")
DENSITY = LinearSegmentedColormap.from_list("density", [PAPER, "#cfdfe6", "#7fb0c2", "#00688b", "#0b3c5d"])
PALE = LinearSegmentedColormap.from_list("pale", [PAPER, "#c3d8e0"])
WHEEL = LinearSegmentedColormap.from_list("wheel", [*COLOURS[:5], COLOURS[0]])  # a circle of colours
PLACES = LinearSegmentedColormap.from_list("places", [COLOURS[0], COLOURS[2], COLOURS[1]])  # of a beginning, from low to high
STYLE: Any = {
    "axes.axisbelow": True, "axes.edgecolor": FAINT, "axes.facecolor": PAPER, "axes.grid": True, "axes.labelcolor": INK,
    "axes.linewidth": 0.8, "axes.titlesize": 10, "axes.spines.right": False, "axes.spines.top": False,
    "axes.prop_cycle": cycler(color=COLOURS), "figure.facecolor": PAPER, "font.family": "DejaVu Sans", "font.size": 9.5,
    "grid.color": "#e4e2da", "legend.frameon": False, "lines.linewidth": 1.8, "mathtext.fontset": "cm", "text.color": INK,
    "xtick.color": FAINT, "xtick.labelcolor": INK, "ytick.color": FAINT, "ytick.labelcolor": INK,
}  # fmt: skip

COSINE = Schedule.make("cosine", 1000, 1e-4, 0.02)
RING_RADIUS, RING_SPREAD = math.sqrt(2), 0.09  # variance 1 in each direction, as the prior
BUMPS, BUMP_SPREAD = ((-1.35,), (0.1,), (1.2,), (1.2,)), 0.12  # of the toy on a line; a place twice has twice the weight


@dataclass(frozen=True, eq=False)
class Mixture:
    """Equal normal distributions of one spread around given centres: density and denoiser at any noise level."""

    centres: Tensor  # (K, D)
    spread: float

    def log_density(self, x: Tensor, sigma: Tensor) -> Tensor:
        """log p_sigma(x) of x (..., D) = x_0 + sigma noise."""
        dims, variance = self.centres.shape[1], self.spread**2 + sigma**2
        logits = -(x[..., None, :] - self.centres).square().sum(-1) / (2 * variance)
        return logits.logsumexp(-1) - math.log(len(self.centres)) - dims / 2 * torch.log(2 * math.pi * variance)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The expected x_0 of x (..., D): the posterior mean of each centre, times how probable the centre is; sigma is one, or (B,)."""
        variance = self.spread**2 + (sigma.reshape(-1, 1) if sigma.ndim else sigma) ** 2
        logits = -(x[..., None, :] - self.centres).square().sum(-1) / (2 * variance)
        centre = logits.softmax(-1) @ self.centres
        return centre + self.spread**2 / variance * (x - centre)


def score(denoise: Denoise, x: Tensor, sigma: Tensor) -> Tensor:
    """The gradient of log p_sigma, by Tweedie's formula."""
    return (denoise(x, sigma) - x) / sigma**2


def ring() -> Mixture:
    angles = torch.arange(96, dtype=torch.float64) * (2 * math.pi / 96)
    return Mixture(RING_RADIUS * torch.stack([angles.cos(), angles.sin()], dim=1), RING_SPREAD)


def draw_schedules(figure: Figure) -> None:
    schedules = {kind: Schedule.make(kind, 1000, 1e-4, 0.02) for kind in ("linear", "sigmoid", "cosine", "flow")}
    schedules["quadratic (Stable Diffusion)"] = Schedule.make("quadratic", 1000, 0.00085, 0.012)
    left, right = figure.subplots(1, 2)
    time = torch.arange(1, 1001) / 1000
    for name, schedule in schedules.items():
        left.plot(time, schedule.alphas_cumprod, label=name)
        right.plot(time, schedule.sigmas.log10() * -20)
    zero = Schedule.make("quadratic", 1000, 0.00085, 0.012, zero_terminal_snr=True)
    left.plot(time, zero.alphas_cumprod, color=COLOURS[4], linestyle=(0, (2, 1)), label="the same, zero terminal SNR")
    right.plot(time[:-1], zero.sigmas[:-1].log10() * -20, color=COLOURS[4], linestyle=(0, (2, 1)))
    left.set(title=r"what is left of the picture,  $\bar\alpha_t$", xlabel=r"$t\,/\,T$", xlim=(0, 1), ylim=(0, 1.02))
    right.set(title="signal-to-noise ratio in decibels", xlabel=r"$t\,/\,T$", xlim=(0, 1), ylim=(-65, 65))
    left.legend(fontsize=8, loc="upper right", bbox_to_anchor=(1.02, 1.02))


def draw_ring(figure: Figure) -> None:
    toy, timesteps = ring(), (40, 180, 400, 620, 999)
    for axes, t in zip(figure.subplots(1, len(timesteps)), timesteps, strict=True):
        sigma = COSINE.sigmas[t]
        scale = (1 + sigma**2).sqrt()  # from x_0 + sigma noise to the variance-preserving x_t
        axes.imshow(toy.log_density(square(160) * scale, sigma).exp().numpy(), extent=(-3, 3, -3, 3), origin="lower", cmap=DENSITY)
        points = square(10, 2.6).reshape(-1, 2)
        arrows = score(toy.denoise, points * scale, sigma) * scale
        arrows = arrows / (1.5 + arrows.norm(dim=1, keepdim=True))  # long arrows are shortened most
        axes.quiver(*points.T.numpy(), *arrows.T.numpy(), color=COLOURS[1], scale=11, width=0.008, headwidth=4, headlength=4)
        axes.set_title(rf"$t = {t + 1}$,  $\bar\alpha_t = {COSINE.alphas_cumprod[t]:.2f}$", fontsize=9)
        bare(axes)


def draw_prior_to_ring(figure: Figure) -> None:
    toy = ring()
    order = torch.arange(900, dtype=torch.float64)
    radii = (-2 * (1 - (order + 0.5) / len(order)).log()).sqrt()  # quantiles of the prior's radius
    angles = order * (math.pi * (3 - math.sqrt(5)))  # the golden angle, as in a sunflower: even, and without rows
    prior = radii[:, None] * torch.stack([angles.cos(), angles.sin()], dim=1)
    sigmas = noise_levels(COSINE, 200, "karras")
    states = walk(heun, toy.denoise, prior * sigmas[0], sigmas)
    colours = WHEEL(angles.div(2 * math.pi).frac().numpy())
    columns = [0, *(int((sigmas - sigma).abs().argmin()) for sigma in (1.0, 0.5, 0.25)), len(sigmas) - 1]
    for axes, index in zip(figure.subplots(1, len(columns)), columns, strict=True):
        points = states[index] / (1 + sigmas[index] ** 2).sqrt()
        axes.scatter(*points.T, c=colours, s=3.5, linewidths=0, clip_on=False)
        name = rf"$\sigma = {sigmas[index]:.2g}$" if index else "the prior"
        axes.set(xlim=(-3.3, 3.3), ylim=(-3.3, 3.3), aspect="equal", title=name)
        bare(axes)


def draw_paths(figure: Figure) -> None:
    toy = Mixture(torch.tensor(BUMPS, dtype=torch.float64), BUMP_SPREAD)
    cells = figure.subplots(2, 4, sharey=True, width_ratios=(6, 1, 6, 1))
    for row, (sampler, name) in enumerate(((euler, "ODE"), (ddpm, "SDE"))):
        for column, steps in enumerate((250, 10)):
            paths, ends = cells[row, 2 * column], cells[row, 2 * column + 1]
            sigmas = noise_levels(COSINE, steps)
            starts = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(4000, dtype=torch.float64) + 0.5) / 4000)[:, None]
            states = walk(sampler, toy.denoise, starts * sigmas[0], sigmas, torch.Generator().manual_seed(3))
            preserving = (states / (1 + sigmas**2).sqrt()[:, None, None])[..., 0]
            time = torch.cat([(COSINE.sigma_to_t(sigmas[:-1]) + 1) / 1000, torch.zeros(1)])
            density_over_time(paths, toy)
            for number in range(150, 4000, 285):
                mark = {"marker": "o", "markersize": 2.4} if steps < 50 else {}
                paths.plot(time, preserving[:, number], color=PLACES(number / 4000), linewidth=0.9, **mark)
            paths.set(title=f"{name}, {steps} steps", xlim=(1, 0), ylim=(-2.7, 2.7), xlabel=r"$t\,/\,T$" if row else "")
            x = torch.linspace(-2.7, 2.7, 300, dtype=torch.float64)
            ends.fill_betweenx(x, toy.log_density(x[:, None], torch.zeros(())).exp(), color="#c3d8e0", linewidth=0)
            counts = preserving[-1].histc(bins=90, min=-2.7, max=2.7) / (4000 * 5.4 / 90)
            ends.stairs(counts, torch.linspace(-2.7, 2.7, 91), orientation="horizontal", baseline=None, color=INK, linewidth=0.8)
            ends.set(xlim=(0, 2.8))
            ends.set_axis_off()


def density_over_time(axes: Axes, toy: Mixture) -> None:
    """q(x_t) as a picture: time to the right from T to 0, each column scaled to its own maximum."""
    axes.grid(False)
    sigmas = torch.cat([COSINE.sigmas.flip(0)[::4], torch.full((1,), 1e-3)]).double()
    scale = (1 + sigmas**2).sqrt()
    x = torch.linspace(-2.7, 2.7, 240, dtype=torch.float64)
    logs = torch.stack([toy.log_density((x * s)[:, None], sigma) for s, sigma in zip(scale, sigmas, strict=True)], dim=1)
    axes.imshow((logs - logs.amax(0)).exp().numpy(), extent=(1, 0, -2.7, 2.7), origin="lower", aspect="auto", cmap=PALE)


def draw_bound(figure: Figure) -> None:
    """Terms of the bound for the toy on a line, whose denoiser and likelihood are known. Averages are sums over nodes, not over draws."""
    toy = Mixture(torch.tensor(BUMPS, dtype=torch.float64), BUMP_SPREAD)
    offsets, shares = normal_nodes(17)
    noises, densities = normal_nodes(81)
    x0 = (toy.centres + BUMP_SPREAD * offsets).reshape(-1, 1, 1).expand(-1, 81, 1).reshape(-1, 1)
    noise = noises.expand(len(BUMPS) * 17, 81).reshape(-1, 1)
    weights = (shares.repeat(len(BUMPS))[:, None] * densities / len(BUMPS)).flatten()
    blurred = Mixture(toy.centres.mean(0, keepdim=True), math.sqrt(toy.centres.var(correction=0) + BUMP_SPREAD**2))

    def step_nats(denoise: Denoise, schedule: Schedule, t: int, kind: str = "beta_tilde") -> float:
        return float(weights @ chain_term(denoise, x0, noise, torch.full((len(x0),), t), schedule, kind))

    left, right = figure.subplots(1, 2)
    fine = Schedule.make("cosine", 8000, 1e-4, 0.02)
    levels = fine.sigma_to_t(torch.linspace(math.log(0.012), math.log(40), 90).exp()).round().long()
    sigmas, widths = fine.sigmas[levels], (fine.sigmas[levels] / fine.sigmas[levels - 1]).log()
    exact, blind = (torch.tensor([step_nats(d, fine, int(t)) for t in levels]) / widths for d in (toy.denoise, blurred.denoise))
    left.semilogx(sigmas, blind, color=COLOURS[1], label="knows mean and variance only")
    left.semilogx(sigmas, exact, color=COLOURS[0], label="exact denoiser")
    left.fill_between(sigmas, exact, color=DENSITY(0.25), linewidth=0)
    left.fill_between(sigmas, exact, blind, color="#f3d9d5", linewidth=0)
    left.set(title=r"nats a unit of $\lambda$", xlabel=r"$\sigma$", xlim=(float(sigmas[0]), float(sigmas[-1])), ylim=(0, 1.1))
    truth = -float(weights @ toy.log_density(x0, torch.zeros(())))
    steps = [4, 8, 16, 32, 64, 128, 256, 512]
    for kind, label in (("beta_tilde", r"variance $\tilde\beta_t$"), ("beta", r"variance $\beta_t$")):
        gaps = []
        for schedule in (Schedule.make("cosine", count, 1e-4, 0.02) for count in steps):
            ends = float(weights @ (prior_term(x0, schedule) + decoder_term(toy.denoise, x0, noise, schedule)))
            gaps.append(ends + sum(step_nats(toy.denoise, schedule, t, kind) for t in range(1, schedule.num_train_timesteps)) - truth)
        right.loglog(steps, gaps, marker="o", markersize=3.5, label=label)
    right.set(title="nats above the exact value", xlabel="$T$")
    name_steps(right, steps)
    for axes in (left, right):
        axes.legend(fontsize=8.5)


def normal_nodes(count: int) -> tuple[Tensor, Tensor]:
    """Even nodes from -6 to 6 and the shares of a standard normal at them: sums over them are integrals to many digits."""
    nodes = torch.linspace(-6, 6, count, dtype=torch.float64)
    return nodes, (-nodes.square() / 2).softmax(0)


def draw_order(figure: Figure) -> None:
    """Errors against x = sqrt(d^2 + sigma^2), the solution of the ODE for data N(0, d^2), before the last step, which is of order 1."""
    spread, top, bottom = 0.5, 20.0, 0.02
    steps = [8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256]
    exact = top * math.sqrt((spread**2 + bottom**2) / (spread**2 + top**2))
    axes = figure.subplots()
    for name in ("euler", "heun", "dpmpp_2m", "unipc"):
        errors = []
        for count in steps:
            falling = torch.linspace(math.log(top), math.log(bottom), count, dtype=torch.float64).exp()
            sigmas = torch.cat([falling, torch.zeros(1, dtype=torch.float64)])
            states = walk(SAMPLERS[name], Mixture(torch.zeros(1, 1).double(), spread).denoise, sigmas[:1, None], sigmas)
            errors.append(abs(float(states[-2]) / exact - 1))
        axes.loglog(steps, errors, marker="o", markersize=3.5, label=name)
    for order, level in ((1, 5.0), (2, 40.0), (3, 320.0)):
        axes.loglog(steps, [level / count**order for count in steps], color=FAINT, linewidth=0.9, linestyle=":", zorder=0)
        axes.annotate(f"order {order}", (steps[-1], level / steps[-1] ** order), xytext=(5, -3), textcoords="offset points", color=FAINT)
    axes.set(xlabel="steps", ylabel="relative error at the end")
    name_steps(axes, steps[::2])
    axes.legend()


def draw_guidance(figure: Figure) -> None:
    """The ring, with the angle between -60 and 60 degrees as the condition: an exact network behind the library's own guidance."""
    whole = ring()
    part = Mixture(whole.centres[whole.centres[:, 0] > RING_RADIUS / 2], RING_SPREAD)

    def net(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """The noise in x (B, 2); context (B, 1, 1) is 1 with the condition and 0 without."""
        sigma = COSINE.t_to_sigma(t)[:, None]
        x = x * (1 + sigma**2).sqrt()
        denoised = torch.where(context[:, 0] > 0, part.denoise(x, sigma), whole.denoise(x, sigma))
        return (x - denoised) / sigma

    sigmas = noise_levels(COSINE, 60, "karras")
    noise = torch.randn(700, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for axes, scale in zip(figure.subplots(1, 4), (0.0, 1.0, 2.0, 6.0), strict=True):
        guided = classifier_free(net, torch.ones(700, 1, 1), torch.zeros(1, 1), scale)
        ends = walk(heun, make_denoiser(guided, COSINE, "epsilon"), noise * sigmas[0], sigmas)[-1]
        density = whole.log_density(square(160), torch.zeros(())).exp().numpy()
        axes.imshow(density, extent=(-3, 3, -3, 3), origin="lower", cmap=DENSITY, alpha=0.25)
        axes.scatter(*ends.T, s=3, color=COLOURS[1], linewidths=0)
        axes.set(xlim=(-2, 2), ylim=(-2, 2), title=f"$w = {scale:g}$")
        bare(axes)


def name_steps(axes: Axes, steps: list[int]) -> None:
    axes.set_xticks(steps, [str(count) for count in steps])
    axes.set_xticks([], minor=True)


def walk(sampler: Sampler, denoise: Denoise, x: Tensor, sigmas: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """All states of a sampler, the first one too: (steps + 1, *x.shape)."""
    walked = sampler(denoise, x, sigmas, noise_at=lambda _: torch.randn(x.shape, generator=generator, dtype=x.dtype))
    return torch.stack([x, *(step.x for step in walked)])


def square(points: int, reach: float = 3.0) -> Tensor:
    """(points, points, 2), from -reach to reach."""
    side = torch.linspace(-reach, reach, points, dtype=torch.float64)
    return torch.stack(torch.meshgrid(side, side, indexing="xy"), dim=-1)


def bare(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


FIGURES: dict[str, tuple[Callable[[Figure], None], tuple[float, float]]] = {  # name -> what draws it, and its size in inches
    "theory-schedules": (draw_schedules, (9.0, 3.4)),
    "theory-ring": (draw_ring, (9.6, 2.15)),
    "theory-prior-to-ring": (draw_prior_to_ring, (9.6, 2.15)),
    "theory-paths": (draw_paths, (9.0, 5.2)),
    "theory-bound": (draw_bound, (9.0, 3.3)),
    "theory-guidance": (draw_guidance, (9.0, 2.4)),
    "theory-order": (draw_order, (7.6, 3.6)),
}


def save(name: str, folder: Path, dpi: int = 125) -> Path:
    """Draws one figure into a folder, as a PNG of 192 colours: a third of the size, and no difference to the eye."""
    drawing, size = FIGURES[name]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, dpi=dpi, layout=ConstrainedLayoutEngine(h_pad=0.09))
        drawing(figure)
        content = BytesIO()
        figure.savefig(content, format="png")
    path = folder / f"{name}.png"
    Image.open(content).convert("RGB").quantize(192, dither=Image.Dither.NONE).save(path, optimize=True)
    return path


if __name__ == "__main__":
    for figure_name in FIGURES:
        save(figure_name, Path(__file__).parent / "pictures")
