"""Defaults of device and precision."""

import os

import torch


def best_device() -> torch.device:
    """The accelerator if there is one, else the CPU. Each of several processes of a machine has an accelerator of its own."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if found and (local_rank := os.environ.get("LOCAL_RANK")):
        return torch.device(found.type, int(local_rank))
    return found or torch.device("cpu")


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether to compute in bf16. For `auto`: if the device has instructions for it.

    bf16 takes about half the time of fp32 on a CPU with AVX512-BF16 or AMX, and more time on other CPUs.
    """
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported())
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
