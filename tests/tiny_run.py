"""The whole pipeline in seconds: tiny parameters, and a way to run stages in this process."""

import importlib
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState
from ruamel.yaml import YAML

from darkroom.demo.toy_cats import draw_toy_cats
from darkroom.params_file import merged, read_yaml
from darkroom.stage import Contract

ROOT = Path(__file__).parents[1]
STAGES: dict[str, Contract[Any]] = {  # in the order of dvc.yaml, which lists `code` beside them
    name: importlib.import_module(f"stages.{name}").STAGE for name in read_yaml(ROOT / "dvc.yaml")["stages"] if name != "code"
}
TRAINING = {"steps": 4, "batch_size": 8, "log_every": 2, "val_every": 4, "checkpoint_every": 2, "warmup_steps": 1, "precision": "fp32"}
CHANGES: dict[str, dict[str, Any]] = {
    "ingest": {"side": 16, "num_workers": 1, "val_fraction": 0.25},
    "train_clip": TRAINING | {
        "model": {"embed_dim": 16, "image_size": 16, "patch_size": 8, "vision_width": 32, "vision_layers": 1, "text_width": 32,
                  "text_layers": 1, "context_length": 24},
    },
    "train_vae": TRAINING | {"model": {"latent_channels": 4, "block_out_channels": [8, 8], "layers_per_block": 1, "norm_num_groups": 4,
                                       "mid_block_add_attention": False}},
    "cache_latents": {"gate": {"min_psnr": None, "min_ssim": None, "max_frechet": None}},  # four steps make no good VAE
    "train_unet": TRAINING | {
        "model": {"block_out_channels": [16, 32], "attention": [False, True], "layers_per_block": 1, "attention_head_dim": 16,
                  "norm_num_groups": 4},
        "num_samples": 2, "sample_every": 4, "sampling": {"sampler": "ddim", "spacing": "trailing", "steps": 2, "guidance_scale": 2.0},
    },
    "evaluate": {"num_samples": 8, "batch_size": 4, "num_grid": 4, "features": {"kind": "clip"},  # the fastest
                 "sampling": {"sampler": "ddim", "spacing": "trailing", "steps": 2, "guidance_scale": 2.0}},
}  # fmt: skip


def write_params(path: Path, **changes: dict[str, Any]) -> None:
    """The repository's params.yaml with CHANGES and then `changes` (section -> keys) applied."""
    YAML().dump(merged(merged(read_yaml(ROOT / "params.yaml"), CHANGES), changes), path)


def make_project(root: Path, *, num_cats: int = 24, **changes: dict[str, Any]) -> None:
    """params.yaml and data/raw with toy cats."""
    root.mkdir(parents=True, exist_ok=True)
    write_params(root / "params.yaml", **changes)
    draw_toy_cats(root / "data" / "raw", num_cats=num_cats, size=16, seed=0)


def run_stage(name: str, root: Path) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)  # a singleton that remembers the last precision
    STAGES[name].execute(params_file=root / "params.yaml", data=root / "data")
