"""The way from one prompt and seed to the next, over any number of stops."""

import torch
from torch import Tensor

from darkroom.diffusion.editing import slerp


def check_stops(num_prompts: int, num_seeds: int, num: int) -> None:
    """
    Raises:
        ValueError: fewer than two stops, different numbers of prompts and seeds, or fewer than two pictures.
    """
    stops = max(num_prompts, num_seeds)
    if stops < 2 or not {num_prompts, num_seeds} <= {1, stops}:
        raise ValueError(f"{num_prompts} prompts and {num_seeds} seeds: give two or more of one, and of the other as many or one.")
    if num < 2:
        raise ValueError(f"num is {num}; a way from one picture to another has at least 2.")


def along(contexts: Tensor, noises: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """`num` contexts and noises, evenly from the first stop to the last: contexts mixed, noises on the arc between two.

    contexts are (S, L, D), or one for all stops, (1, L, D); noises (S, C, h, w), likewise.
    """
    stops = max(len(contexts), len(noises))
    contexts, noises = contexts.expand(stops, -1, -1), noises.expand(stops, -1, -1, -1)
    places = [index * (stops - 1) / (num - 1) for index in range(num)]
    lefts = [min(int(place), stops - 2) for place in places]
    pairs = [(left, place - left) for left, place in zip(lefts, places, strict=True)]
    mixed = torch.stack([torch.lerp(contexts[left], contexts[left + 1], weight) for left, weight in pairs])
    turned = torch.cat([slerp(noises[left, None], noises[left + 1, None], weight) for left, weight in pairs])
    return mixed, turned
