"""LoRA adapters, by peft: the weight W is frozen and (alpha / rank) B A is trained and added to it (Hu et al. 2022, equation 3)."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"  # the file that diffusers' `load_lora_weights(folder)` reads
KOHYA_FILE = "kohya_lora.safetensors"  # the same numbers with the names that ComfyUI and A1111 read

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "conv")  # of residual blocks, and of down- and upsampling
ADAPTER = "default"  # peft's name for the one adapter


def add_lora(net: nn.Module, *, rank: int, alpha: int, conv: bool, seed: int) -> None:
    """Freeze `net` and add an adapter to its attention projections and, with `conv`, to the convolutions of its blocks.

    A is drawn from `seed` alone and B is 0, so that `net` computes the same as before until the first step.
    """
    from peft import LoraConfig, inject_adapter_in_model

    targets = [*ATTENTION, *CONVOLUTIONS] if conv else [*ATTENTION]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets), net, ADAPTER)


def merge_lora(net: nn.Module) -> None:
    """Merge the adapter into the weights. `net` then has the layers and names from before `add_lora`, and no frozen weight."""
    for name, layer in list(_layers(net)):
        layer.merge(safe_merge=True)
        net.set_submodule(name, layer.get_base_layer())
    del net.peft_config
    net.requires_grad_(True)


def save_lora(net: nn.Module, folder: Path) -> None:
    """Write the adapter twice: for diffusers (peft's names) and for tools that read kohya's names.

    The factor alpha / rank is multiplied into B, so that readers that ignore alpha get the right result.
    """
    folder.mkdir(parents=True)
    diffusers: dict[str, Tensor] = {}
    kohya: dict[str, Tensor] = {}
    for name, layer in _layers(net):
        down = layer.lora_A[ADAPTER].get_parameter("weight").detach().cpu()
        up = (layer.lora_B[ADAPTER].get_parameter("weight").detach() * layer.scaling[ADAPTER]).cpu()
        diffusers |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
        other = f"lora_unet_{name.replace('.', '_')}"
        kohya |= {f"{other}.lora_down.weight": down, f"{other}.lora_up.weight": up, f"{other}.alpha": torch.tensor(float(len(down)))}
    for file, weights in ((DIFFUSERS_FILE, diffusers), (KOHYA_FILE, kohya)):
        save_file(weights, folder / file, metadata={"format": "pt"})


def _layers(net: nn.Module) -> Iterator[tuple[str, "LoraLayer"]]:
    from peft.tuners.lora import LoraLayer

    for name, module in net.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module
