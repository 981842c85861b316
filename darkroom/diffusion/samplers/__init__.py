"""Samplers: generators over D(x, sigma) that step through falling noise levels down to 0.

All of them hold x = x_0 + sigma * noise. Noise is an argument: `noise_at(k)` gives the k-th standard normal noise.
"""

from typing import get_args

from darkroom.choices import SamplerName
from darkroom.diffusion.samplers import multistep, ode, stochastic
from darkroom.diffusion.samplers.step import NoiseAt, Sampler, Step

FAMILIES = (multistep, ode, stochastic)
_DEFINED = {name: value for family in FAMILIES for name, value in vars(family).items()}

SAMPLERS: dict[str, Sampler] = {name: _DEFINED[name] for name in get_args(SamplerName)}

__all__ = ["SAMPLERS", "NoiseAt", "Sampler", "Step"]
