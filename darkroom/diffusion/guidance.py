"""Guidance: a conditional network becomes an unconditional-looking one that leans towards its condition."""

from collections.abc import Callable

import torch
from torch import Tensor

from darkroom.diffusion.denoiser import Net

ConditionalNet = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x, t, context) -> prediction


def classifier_free(net: ConditionalNet, context: Tensor, empty_context: Tensor, guidance_scale: float) -> Net:
    """Moves the prediction from that of the empty prompt towards, and past, that of the prompt (Ho & Salimans 2022).

    Args:
        context: (B, L, D), of the prompts.
        empty_context: (L, D) or (B, L, D), of the empty prompt, or of what the picture should not show.
        guidance_scale: 0 = empty prompt alone, 1 = prompt alone (either costs one evaluation), more = past it (one of batch 2B).
    """
    empty_context = empty_context.expand_as(context)
    if guidance_scale in (0, 1):
        only = context if guidance_scale == 1 else empty_context
        return lambda x, t: net(x, t, only)
    both = torch.cat([empty_context, context])

    def guided(x: Tensor, t: Tensor) -> Tensor:
        without, with_prompt = net(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        return without + guidance_scale * (with_prompt - without)

    return guided
