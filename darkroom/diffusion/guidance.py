"""Guidance: predictions are moved towards a condition; samplers need not know.

`classifier_free` acts on the prediction of the network, before `make_denoiser`; the others act on D(x, sigma), after it. Both can be
used together.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from darkroom.diffusion.denoiser import Denoise, Net, times
from darkroom.diffusion.schedule import MOST_NOISE

ConditionalNet = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x, t, context) -> prediction
LogProbability = Callable[[Tensor, Tensor], Tensor]  # (x, sigma) -> log p(y | x, sigma) of each image (B,), differentiable in x
Similarity = Callable[[Tensor], Tensor]  # denoised latents (B, C, h, w) -> how well each fits (B,), differentiable


def classifier_free(
    net: ConditionalNet,
    context: Tensor,
    empty_context: Tensor,
    scale: float,
    rescale: float = 0.0,
    interval: tuple[float, float] | None = None,
) -> Net:
    """Classifier-free guidance: from the prediction for the empty prompt towards, and past, that for the prompt (Ho & Salimans 2022).

    Args:
        net: the trained network.
        context: (B, L, D), of the prompts.
        empty_context: (L, D) or (B, L, D), of the empty prompt or of negative prompts.
        scale: the guidance scale. 0 = the empty prompt alone and 1 = the prompt alone cost one evaluation; above 1 = past it, one of
            batch 2B.
        rescale: 0 to 1; the share of the guided prediction whose standard deviation is reset to that of the prediction for the prompt,
            against overexposed images (Lin et al. 2024, section 3.4, use 0.7).
        interval: the first and the last guided timestep, both included; all others take the prompt alone, at one evaluation
            (Kynkaanniemi et al. 2024). `Schedule.sigma_to_t` converts the noise levels of their paper. None = all timesteps.

    Raises:
        ValueError: rescale outside 0 to 1, or an interval that ends before it begins.
    """
    if not 0 <= rescale <= 1:
        raise ValueError(f"guidance rescale is {rescale}; it must be between 0 (off) and 1.")
    if interval is not None and not interval[0] <= interval[1]:
        raise ValueError(f"guidance interval {interval[0]:g} to {interval[1]:g} ends before it begins.")
    empty_context = empty_context.expand_as(context)
    if scale == 1:
        return lambda x, t: net(x, t, context)
    if scale == 0 and rescale == 0 and interval is None:
        return lambda x, t: net(x, t, empty_context)
    both = torch.cat([empty_context, context])

    def guided(x: Tensor, t: Tensor) -> Tensor:
        inside = torch.ones_like(t, dtype=torch.bool) if interval is None else (interval[0] <= t) & (t <= interval[1])
        if interval is not None and not inside.any():
            return net(x, t, context)
        without, with_prompt = net(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        prediction = _rescaled(without + scale * (with_prompt - without), with_prompt, rescale)
        return torch.where(inside.reshape(-1, *[1] * (x.ndim - 1)), prediction, with_prompt)

    return guided


def classifier_guidance(denoise: Denoise, log_probability: LogProbability, scale: float) -> Denoise:
    """Guidance by a classifier of noised images: D + scale sigma^2 grad_x log p(y | x, sigma).

    The rule of ADM-G in terms of D (Dhariwal & Nichol 2021, algorithm 2), for any sampler. By Bayes' rule and Tweedie's formula
    it is, at scale 1 and with a perfect classifier, the D of the images of that class; a larger scale weighs them by
    p(y | x)^scale.
    """

    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(log_probability(leaf, sigma).sum(), leaf)
        return denoise(x, sigma) + times(gradient, scale * sigma.to(torch.float64) ** 2)

    return guided


def clip_guidance(denoise: Denoise, similarity: Similarity, scale: float) -> Denoise:
    """Guidance towards clean images that CLIP finds similar to a prompt: D + scale sigma^2 grad_x similarity(D(x, sigma)).

    It is `classifier_guidance` by log p(y | x, sigma) = scale similarity(D(x, sigma)), which needs no classifier of noised images. The
    gradient goes through the network, so that it stays close to the images that the network knows. Exact for Gaussian data and a linear
    similarity (the data is tilted by e^(scale similarity)), an approximation otherwise (Chung et al. 2023, theorem 1). Above
    MOST_NOISE, D is left as it is: there is no image to compare, and sigma^2 would amplify the error of the network.
    """

    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        if (sigma > MOST_NOISE).all():
            return denoise(x, sigma)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            denoised = denoise(leaf, sigma)
            (gradient,) = torch.autograd.grad(similarity(denoised).sum(), leaf)
        return denoised.detach() + times(gradient, scale * sigma.to(torch.float64) ** 2)

    return guided


def _rescaled(guided: Tensor, with_prompt: Tensor, rescale: float) -> Tensor:
    """A mix of the guided prediction and the same prediction with the standard deviation that `with_prompt` has in each image."""
    if rescale == 0:
        return guided
    within = tuple(range(1, guided.ndim))
    ratio = with_prompt.std(within, keepdim=True) / guided.std(within, keepdim=True)
    return guided * (rescale * ratio + 1 - rescale)
