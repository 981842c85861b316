"""Samplers: generators over D(x, sigma) that walk a falling grid of noise levels down to 0.

All of them hold x = x_0 + sigma * noise. Chance is an argument: `noise_at(k)` gives the k-th standard normal noise.
"""

from darkroom.diffusion.samplers.multistep import dpmpp_2m, dpmpp_2m_sde, unipc
from darkroom.diffusion.samplers.ode import euler, heun, ode_adaptive
from darkroom.diffusion.samplers.step import NoiseAt, Sampler, Step
from darkroom.diffusion.samplers.stochastic import ddim, ddpm, ddpm_beta, euler_ancestral, euler_maruyama, predictor_corrector

SAMPLERS: dict[str, Sampler] = {
    "ddpm": ddpm,
    "ddpm_beta": ddpm_beta,
    "ddim": ddim,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "unipc": unipc,
    "euler_maruyama": euler_maruyama,
    "predictor_corrector": predictor_corrector,
    "ode_adaptive": ode_adaptive,
}

__all__ = [
    "SAMPLERS",
    "NoiseAt",
    "Sampler",
    "Step",
    "ddim",
    "ddpm",
    "ddpm_beta",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "euler",
    "euler_ancestral",
    "euler_maruyama",
    "heun",
    "ode_adaptive",
    "predictor_corrector",
    "unipc",
]
