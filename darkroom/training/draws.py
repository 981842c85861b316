"""Random draws as functions of (seed, position): data order, noise, dropout. Nothing depends on the state of a generator.

A position counts the samples that a run has seen: step s of batch size B has the positions [s B, (s + 1) B), however they are
split over processes and micro-steps. So a resumed run, or a run on more devices, makes the same draws.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio


def positions_of_step(
    step: int,
    *,
    batch_size: int,  # over all processes
    gradient_accumulation: int,
    num_processes: int,
    process: int,
) -> list[range]:
    """The positions of one process, one range per micro-step. Together, the processes cover the step exactly once."""
    micro = batch_size // (gradient_accumulation * num_processes)
    starts = (step * batch_size + (part * num_processes + process) * micro for part in range(gradient_accumulation))
    return [range(start, start + micro) for start in starts]


def shuffled(positions: Sequence[int], *, num_samples: int, seed: int) -> list[int]:
    """The sample at each position. Every epoch has its own permutation."""
    return [int(_permutation(num_samples, seed, position // num_samples)[position % num_samples]) for position in positions]


@lru_cache(maxsize=2)
def _permutation(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_samples)


def generator(seed: int, stream: str, position: int) -> torch.Generator:
    """The generator of one sample. Different uses of randomness have different names of their `stream`."""
    digest = hashlib.blake2b(f"{seed}/{stream}/{position}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def normal(shape: Sequence[int], *, seed: int, stream: str, positions: Sequence[int]) -> Tensor:
    """Standard normal noise (B, *shape); each sample has its own generator."""
    return torch.stack([torch.randn(tuple(shape), generator=generator(seed, stream, position)) for position in positions])


def uniform(*, seed: int, stream: str, positions: Sequence[int]) -> Tensor:
    """Uniform numbers in [0, 1), (B,)."""
    return torch.stack([torch.rand((), generator=generator(seed, stream, position)) for position in positions])


def quasi_uniform(*, seed: int, stream: str, positions: Sequence[int]) -> Tensor:
    """Numbers in [0, 1), (B,). Consecutive positions cover the interval evenly.

    They are the multiples of the golden ratio modulo 1, from a random start (Kuipers & Niederreiter 1974, section 2.3). Integers
    modulo 2^64 keep them exact for runs of any length.
    """
    start = int(uniform(seed=seed, stream=stream, positions=[0]) * 2**24) << 40
    numbers = [((start + position * GOLDEN) % 2**64 >> 40) / 2**24 for position in positions]  # 24 bits: fp32 never rounds up to 1
    return torch.tensor(numbers, dtype=torch.float32)
