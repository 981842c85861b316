"""Stable Diffusion 1.5 through the stages by its presets: in miniature, and (huge) with all of its 860 million parameters."""

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from ruamel.yaml import YAML
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from darkroom.cli import main as darkroom
from darkroom.demo.toy_cats import draw_toy_cats
from darkroom.params_file import defaults, merged, read_preset
from tests.interchange.pipelines import make_pipeline
from tests.tiny_run import run_stage

ROOT = Path(__file__).parents[2]
SAMPLING = {"sampler": "ddim", "spacing": "trailing", "steps": 2, "guidance_scale": 2.0}
SMALL: dict[str, dict[str, Any]] = {  # what a preset is changed in, so that it ends in seconds and bears random weights
    "ingest": {"side": 64, "min_side": 16, "num_workers": 1, "val_fraction": 0.25},
    "train_vae": {"num_pictures": 2},
    "cache_latents": {"gate": {"min_psnr": None, "min_ssim": None, "max_frechet": None}},
    "train_unet": {
        "steps": 2,
        "batch_size": 2,
        "gradient_accumulation": 1,
        "warmup_steps": 0,
        "num_samples": 1,
        "precision": "fp32",
        "sampling": SAMPLING,
    },
    "evaluate": {
        "num_samples": 4,
        "num_grid": 2,
        "sampling": SAMPLING,
    },
}


def use_preset(root: Path, name: str) -> None:
    """Copies a preset as it stands, but for SMALL."""
    YAML().dump(merged(merged(defaults(), read_preset(str(ROOT / "presets" / name))), SMALL), root / "params.yaml")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project in which everything stands but the U-Net, after `darkroom import` of Stable Diffusion in miniature."""
    root = tmp_path_factory.mktemp("sd15")
    make_pipeline("sd1").save_pretrained(root / "source")
    draw_toy_cats(root / "data" / "raw", num_cats=32, size=64, seed=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DARKROOM_TRACKING", "off")
        patch.chdir(root)
        darkroom(["import", "source", "models/sd15"])
        use_preset(root, "sd15-lora.yaml")
        for stage in ("ingest", "train_clip", "train_vae", "cache_latents"):
            run_stage(stage, root)
        yield root


@pytest.fixture(scope="module", params=["sd15-finetune", "sd15-lora"])
def tuned(request: pytest.FixtureRequest, project: Path) -> Path:
    """The folder of a finished run of a preset, and beside it, in exported/, the same as a pipeline."""
    folder = project / request.param
    use_preset(project, f"{request.param}.yaml")
    run_stage("train_unet", project)
    run_stage("evaluate", project)
    shutil.copytree(project / "data", folder)
    darkroom(["export", request.param, f"{request.param}/exported", "--format", "diffusers"])
    return folder


def load_pipeline(folder: Path) -> Any:
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def picture(pipeline: Any) -> Tensor:
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    pictures = pipeline("a sitting black cat", num_inference_steps=2, latents=noise, height=64, width=64, output_type="pt").images
    return pictures[0]


def test_a_tuned_stable_diffusion_has_a_report_of_distances_without_clip_scores(tuned):
    metrics = json.loads((tuned / "report" / "metrics.json").read_text())
    assert {"kid", "copied_fraction", "reconstruction_psnr"} <= set(metrics)
    assert not [key for key in metrics if key.startswith("clip")]
    assert (tuned / "unet" / "samples.png").is_file()


def test_only_the_unet_is_another_than_that_of_the_source(tuned, project):
    found, source = load_pipeline(tuned / "exported"), load_pipeline(project / "source")
    torch.testing.assert_close(found.vae.state_dict(), source.vae.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(found.text_encoder.state_dict(), source.text_encoder.state_dict(), rtol=0, atol=0)
    before, after = source.unet.state_dict(), found.unet.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    projections = {name for name in before if ".attn" in name and name.endswith(".weight")}
    assert changed == (projections if "lora" in tuned.name else set(before))
    assert (tuned / "unet" / "lora").exists() == ("lora" in tuned.name)


@pytest.mark.parametrize("tuned", ["sd15-lora"], indirect=True)
def test_the_source_with_our_lora_file_draws_in_diffusers_what_the_export_draws(tuned, project):
    exported, source = load_pipeline(tuned / "exported"), load_pipeline(project / "source")
    exported.scheduler = source.scheduler
    plain = picture(source)
    source.load_lora_weights(tuned / "unet" / "lora")
    expected, found = picture(exported), picture(source)
    assert (found - expected).abs().max() < 1e-4
    assert (plain - expected).abs().max() > 1e-3


# ---- with all parameters

NEEDED_GIB = {"memory": 18, "disk": 40}
PUBLISHED = """
import sys
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel
from tests.interchange.pipelines import SCHEDULER, make_tokenizer
from tests.models.test_unet import SD1_CONFIG_JSON

torch.manual_seed(0)
blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4, "layers_per_block": 2}
text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "hidden_act": "quick_gelu"}
StableDiffusionPipeline(
    unet=UNet2DConditionModel(**{key: value for key, value in SD1_CONFIG_JSON.items() if not key.startswith("_")}).half(),
    vae=AutoencoderKL(block_out_channels=(128, 256, 512, 512), sample_size=512, **blocks).half(),
    text_encoder=CLIPTextModel(CLIPTextConfig(bos_token_id=49406, eos_token_id=49407, **text)).half(),
    tokenizer=make_tokenizer("<|endoftext|>"),
    scheduler=PNDMScheduler(**{key: value for key, value in SCHEDULER.items() if key != "clip_sample"}, skip_prk_steps=True),
    safety_checker=None,
    feature_extractor=None,
    requires_safety_checker=False,
).save_pretrained(sys.argv[1])
"""
WITHOUT_HEAD = """
import sys
from safetensors.torch import load_file, save_file

save_file(load_file(sys.argv[1]), sys.argv[2], metadata={"format": "pt"})  # as strangers write it: no word on the configuration
"""


class Processes:
    """Runs each step in a process of its own and keeps what it took."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rows: list[str] = []
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        self.environment = os.environ | {"PYTHONPATH": paths, "DARKROOM_TRACKING": "off", "OMP_NUM_THREADS": "2"}

    def run(self, name: str, *arguments: str) -> int:
        """`python *arguments`; the bytes that its checkpoints took at most."""
        begun, peak, largest = time.monotonic(), 0, 0
        with (self.root / "log").open("w+") as log:
            process = subprocess.Popen([sys.executable, *arguments], cwd=self.root, env=self.environment, stdout=log, stderr=log)
            while process.poll() is None:
                peak = max(peak, most_resident(process.pid))
                largest = max(largest, size_of(self.root / ".scratch"))
                time.sleep(0.1)
            log.seek(0)
            assert process.returncode == 0, f"{name}: {log.read()[-3000:]}"
        self.rows.append(f"{name:32} {peak / 2**20:6.2f} GiB {time.monotonic() - begun:6.0f} s")
        return largest

    def stage(self, name: str, title: str = "") -> int:
        return self.run(title or name, "-m", f"stages.{name}")

    def darkroom(self, *arguments: str) -> None:
        self.run(f"darkroom {arguments[0]} {Path(arguments[1]).name}", "-m", "darkroom.cli", *arguments)


def most_resident(pid: int) -> int:
    """KiB that the process has had in memory at most; `getrusage` would not tell: a child begins with what its parent had."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in status if line.startswith("VmHWM")), 0)


def size_of(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # renamed in this moment
            continue
    return total


def changed_tensors(before: Path, after: Path) -> set[str]:
    """Names of the weights of two U-Nets that differ, a tensor at a time; the first may be of half precision."""
    name = "diffusion_pytorch_model.safetensors"
    with safe_open(before / name, "pt") as old, safe_open(after / name, "pt") as new:
        assert set(old.keys()) == set(new.keys())
        return {key for key in old.keys() if not torch.equal(old.get_tensor(key).float(), new.get_tensor(key))}  # noqa: SIM118


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Path]:
    """A folder with room enough, that is emptied afterwards."""
    available = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    free = {"memory": int(available.split()[1]) / 2**20, "disk": shutil.disk_usage(tmp_path).free / 2**30}
    for kind, gib in NEEDED_GIB.items():
        if free[kind] < gib:
            pytest.skip(f"{free[kind]:.0f} GiB of {kind} are free, {gib} are needed")
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.huge
@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="free memory is looked up as Linux has it")
def test_all_860_million_parameters_go_in_are_tuned_both_ways_and_come_out(room, capsys):
    do = Processes(room)
    draw_toy_cats(room / "data" / "raw", num_cats=8, size=64, seed=0)
    do.run("(diffusers saves it, fp16)", "-c", PUBLISHED, "source")
    do.darkroom("import", "source", "models/sd15")
    assert changed_tensors(room / "source" / "unet", room / "models" / "sd15" / "unet") == set()
    with safe_open(room / "models" / "sd15" / "unet" / "diffusion_pytorch_model.safetensors", "pt") as weights:
        assert sum(math.prod(weights.get_slice(key).get_shape()) for key in weights.keys()) == 859_520_964  # noqa: SIM118

    do.darkroom("export", "models/sd15", "own.safetensors", "--format", "single-file")
    do.run("(its head is taken off)", "-c", WITHOUT_HEAD, "own.safetensors", "v1-5.safetensors")
    do.darkroom("import", "v1-5.safetensors", "models/from-single-file")
    assert changed_tensors(room / "source" / "unet", room / "models" / "from-single-file" / "unet") == set()
    for path in ("own.safetensors", "v1-5.safetensors"):
        (room / path).unlink()
    shutil.rmtree(room / "models" / "sd15")
    (room / "models" / "from-single-file").rename(room / "models" / "sd15")  # goes on as what presets expect

    use_preset(room, "sd15-finetune.yaml")
    for stage in ("ingest", "train_clip", "train_vae", "cache_latents"):
        do.stage(stage)
    base, tuned = room / "models" / "sd15" / "unet", room / "data" / "unet"
    do.stage("train_unet", "train_unet, all weights")
    names = changed_tensors(base, tuned)
    assert len(names) == 686

    use_preset(room, "sd15-lora.yaml")
    checkpoints = do.stage("train_unet", "train_unet, LoRA")
    assert changed_tensors(base, tuned) == {name for name in names if ".attn" in name and name.endswith(".weight")}
    lora = tuned / "lora" / "pytorch_lora_weights.safetensors"
    assert size_of(lora.parent) < 30e6
    assert checkpoints < 60e6
    do.darkroom("export", "data", "exported", "--format", "diffusers")
    assert_diffusers_finds_the_same(base, lora, room / "exported" / "unet")
    with capsys.disabled():
        print("\nPeak memory of each process (resident, mapped files included), and its time:", *do.rows, sep="\n  ")


@torch.no_grad()
def assert_diffusers_finds_the_same(base: Path, lora: Path, exported: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(1, 4, 8, 8, generator=generator), torch.tensor([500]), torch.randn(1, 77, 768, generator=generator)
    expected = diffusers.UNet2DConditionModel.from_pretrained(exported)(*inputs).sample
    unet = diffusers.UNet2DConditionModel.from_pretrained(base)
    unet.load_lora_adapter(load_file(lora), prefix="unet")
    found = unet(*inputs).sample
    assert (found - expected).norm() / expected.norm() < 1e-4
