"""Checkpoints. They are written whole or not at all, and the last good one is kept until the next one is verified."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from darkroom.provenance import files_table, replacing, write_json
from darkroom.training.optimizer import Ema

logger = logging.getLogger(__name__)
MANIFEST = "manifest.json"


class Checkpoints:
    """The checkpoints `step-00000500/` of one run: trained weights, their EMA, the optimizer, and `state` (step and curves) as JSON.

    Frozen parameters are not stored: training never changes them, and with LoRA they are a hundred times as large as the rest.
    """

    def __init__(self, folder: Path, *, net: nn.Module, ema: Ema, optimizer: torch.optim.Optimizer) -> None:
        self.folder = folder
        self.net = net
        self.ema = ema
        self.optimizer = optimizer

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the checkpoint after `step` optimizer steps, read it back, then remove the older ones."""
        target = self.folder / f"step-{step:08d}"
        with replacing(target) as tmp:
            tmp.mkdir()
            save_file(_contiguous(_unfrozen(self.net)), tmp / "net.safetensors")
            save_file(_contiguous(self.ema.state_dict()), tmp / "ema.safetensors")
            torch.save(self.optimizer.state_dict(), tmp / "optimizer.pt")
            write_json(tmp / "state.json", {"step": step, **state})
            write_json(tmp / MANIFEST, files_table(tmp))
        if not _is_whole(target):
            raise ValueError(
                f"The checkpoint {target} reads back differently from what was written. Check the disk; older checkpoints are kept."
            )
        for older in self._all():
            if older != target:
                shutil.rmtree(older)

    def load_latest(self) -> dict[str, Any] | None:
        """Restore everything from the newest whole checkpoint and return its state, or None if there is no checkpoint."""
        for folder in reversed(self._all()):
            if not _is_whole(folder):
                logger.warning("The checkpoint %s is damaged and is skipped.", folder)
                continue
            _load_unfrozen(self.net, load_file(folder / "net.safetensors"))
            self.ema.load_state_dict(load_file(folder / "ema.safetensors"))
            self.optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True, map_location="cpu"))
            state: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            return state
        return None

    def _all(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if path.suffix != ".tmp")


def _unfrozen(net: nn.Module) -> dict[str, Tensor]:
    """The state of `net` (parameters and buffers) without its frozen parameters."""
    frozen = {name for name, parameter in net.named_parameters(remove_duplicate=False) if not parameter.requires_grad}
    return {name: tensor for name, tensor in net.state_dict().items() if name not in frozen}


def _load_unfrozen(net: nn.Module, state: dict[str, Tensor]) -> None:
    assert set(state) == set(_unfrozen(net)), "the folder of a checkpoint is named by everything that shapes its run"
    net.load_state_dict(state, strict=False)


def _contiguous(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in state.items()}


def _is_whole(folder: Path) -> bool:
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return False
    table = files_table(folder)
    table.pop(MANIFEST)
    return bool(table == json.loads(manifest.read_text(encoding="utf-8")))
