"""What a run will take, told before it begins: arithmetic, time and memory of each stage, and disk. It is an estimate.

- Arithmetic: the FLOP of one forward pass of one picture (`darkroom.outline`). A step of training takes three passes, because the
  backward pass counts as two; four with gradient checkpointing.
- Speed: the run's own network does a step with a few pictures on this machine, in its precision. A network that is too large for that
  is taken to be as fast as the one of the toy.
- Memory: that of this process, which has imported what a stage imports; 4 bytes a weight; 12 more a trained one (gradient and AdamW),
  16 with EMA; and what the forward pass of a micro-batch keeps for the backward pass, half of it in bf16.
- Time beside the arithmetic: the start of each stage, as long as that of this process, twice, because the tracker loads MLflow.
- Times on a CPU are measured as its own time in one thread, so that other programs on the machine do not count; with them a run takes
  longer. Each further thread is taken to add `SHARE` of the speed of the first.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from darkroom.config import SECTIONS, IngestParams, SamplerParams, TrainingParams
from darkroom.data.doctor import list_files
from darkroom.data.picture import PictureStyle, develop, image_suffixes
from darkroom.data.workers import num_cores
from darkroom.device import best_device, use_bf16
from darkroom.models.classifier import SHIPPED_SIDE, SHIPPED_SMALL_SIDE, SMALL
from darkroom.outline import Part, networks, not_here
from darkroom.training.optimizer import newton_schulz_flop

PROBE_FLOP = {"cpu": 1e10}  # that a measurement of the speed may take
PROBE_FLOP_OF_OTHERS = 1e12
CLASSIFIER_FLOP = {SHIPPED_SIDE: 1.67e9, SHIPPED_SMALL_SIDE: 0.81e9}  # of SqueezeNet 1.0, by the side to which it gets a picture
COMPARISON_FLOP = 8e4  # of a perceptual loss by SqueezeNet, per px: both images, and the gradient of one
LOOK_AREA = 1.4  # of a whole photo in which ingest looks for the subject, in squares of that side
LOOKS_FOR_WORDS = 224  # at photos and spoilt photos, before it knows the classes of the subject
LOOKS = 6  # of evaluation at a held-out photo: itself, its reconstruction and four spoilt copies
VALIDATED = 256  # held-out photos of a validation, at most
CLIP_BATCH = 64
TWICE = ("heun", "predictor_corrector")  # samplers with two network evaluations per step
SHARE = 0.7  # of the speed of one thread that another one adds: some of the work has no parts
STARTS = 2  # of this process, which a stage takes to start


@dataclass(frozen=True)
class Cost:
    """Of one stage."""

    stage: str
    seconds: float
    weights: int = 0  # parameters of the network that it trains, or uses as it is
    flop: float = 0.0  # of the whole stage
    memory: float = 0.0  # bytes, at the peak; 0 = not estimated


@dataclass(frozen=True)
class Machine:
    """How fast this machine is with the networks of the run."""

    device: torch.device
    speed: Mapping[str, float]  # stage -> FLOP per second
    start: float  # seconds until a stage begins its work
    base: float  # bytes of a process that has imported everything

    @classmethod
    def measure(cls, parts: Mapping[str, Part], sections: Mapping[str, Any], *, start: float) -> "Machine":
        device, base = best_device(), float(psutil.Process().memory_info().rss)
        toys: dict[str, Part] = {}
        speed = {}
        for stage, part in parts.items():
            bf16 = use_bf16(sections[stage].precision, device)
            if 3 * part.flop > PROBE_FLOP.get(device.type, PROBE_FLOP_OF_OTHERS):
                toys = toys or networks({name: section() for name, section in SECTIONS.items()})
                part = toys[stage]
            speed[stage] = measure_speed(part, device, bf16=bf16, most=sections[stage].micro_batch)
        return cls(device, speed, start, base)


def measure_speed(part: Part, device: torch.device, *, bf16: bool, most: int) -> float:
    """FLOP per second of a forward and a backward pass with as many pictures as the budget allows, at most `most`.

    The network of `part` leaves the meta device; its weights are any small numbers.
    """
    num = int(min(most, max(1, PROBE_FLOP.get(device.type, PROBE_FLOP_OF_OTHERS) / (3 * part.flop))))
    net = part.net.to_empty(device=device)
    for tensor in (*net.parameters(), *net.buffers()):
        torch.nn.init.constant_(tensor, 0.01)  # what happens to lie in memory may be denormal, which is slow
    inputs = part.inputs(num, device)
    is_cpu, threads = device.type == "cpu", torch.get_num_threads()
    clock, together = (time.process_time, 1 + SHARE * (threads - 1)) if is_cpu else (time.perf_counter, 1.0)

    def step() -> float:
        started = clock()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            outputs = net(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        sum(output.float().sum() for output in outputs).backward()
        float(next(parameter.grad.sum() for parameter in net.parameters() if parameter.grad is not None))  # waits for the device
        return clock() - started

    torch.set_num_threads(1 if is_cpu else threads)  # two threads wait for each other on a busy machine, and that counts
    try:
        return 3 * part.flop * num * together / min(step() for _ in range(3))
    finally:
        torch.set_num_threads(threads)


def costs(sections: Mapping[str, Any], parts: Mapping[str, Part], machine: Machine, *, num_photos: int, photo_seconds: float) -> list[Cost]:
    """Of all stages in their order.

    Args:
        sections: parameters by stage.
        num_photos: files in data/raw.
        photo_seconds: that `ingest` takes for one of them, in one process.
    """
    ingest, unet, evaluate = (sections[name] for name in ("ingest", "train_unet", "evaluate"))
    held_out = round(num_photos * ingest.val_fraction)
    vae, denoiser = parts["train_vae"], parts["train_unet"]
    previews = unet.steps // unet.sample_every + 1 if unet.steps else 1
    drawn = previews * unet.num_samples * passes(unet.sampling) * denoiser.flop
    cached = num_views(sections, num_photos) * vae.flop / 2 + held_out * vae.flop
    samples = evaluate.num_samples * (passes(evaluate.sampling) * denoiser.flop + vae.flop / 2) + held_out * (3 * denoiser.flop + vae.flop)
    look = CLASSIFIER_FLOP[SHIPPED_SMALL_SIDE if ingest.side <= SMALL else SHIPPED_SIDE]
    looks = (num_photos + evaluate.num_samples + LOOKS * held_out) * look
    workers = ingest.num_workers or num_cores()
    searched = (num_photos + LOOKS_FOR_WORDS) * CLASSIFIER_FLOP[SHIPPED_SIDE] * LOOK_AREA if ingest.crop == "subject" else 0.0
    search_seconds = searched / machine.speed["train_unet"]  # a linear autoencoder is too small to measure by
    found = [Cost("ingest", machine.start + num_photos * photo_seconds / workers + search_seconds, flop=searched)]
    compared = COMPARISON_FLOP * ingest.side**2
    of_vae, of_unet = (params.steps * params.batch_size * bool(params.perceptual.weight) for params in (sections["train_vae"], unet))
    for stage, extra in (
        ("train_clip", 0.0),
        ("train_vae", of_vae * compared),
        ("train_unet", drawn + of_unet * (compared + 3 * vae.flop / 2)),
    ):
        if stage in parts:
            found.append(training_cost(parts[stage], sections[stage], machine, validated=min(held_out, VALIDATED), extra=extra))
    found.append(_cost("cache_latents", cached, machine, "train_vae"))
    found.append(_cost("evaluate", samples + looks, machine, "train_unet"))
    found.append(Cost("register", machine.start))
    order = list(SECTIONS)
    return sorted(found, key=lambda cost: order.index(cost.stage))


def passes(sampling: SamplerParams) -> int:
    """Forward passes of the U-Net for one sample: two with guidance, one for the caption and one for the empty prompt."""
    return sampling.steps * (2 if sampling.sampler in TWICE else 1) * (1 if sampling.guidance_scale in (0, 1) else 2)


def _cost(stage: str, flop: float, machine: Machine, like: str) -> Cost:
    return Cost(stage, machine.start + flop / machine.speed[like], flop=flop)


def training_cost(part: Part, params: TrainingParams, machine: Machine, *, validated: int, extra: float) -> Cost:
    """Of a training stage; `extra` is its FLOP for previews and perceptual losses."""
    again = 1 if getattr(params, "gradient_checkpointing", False) else 0
    steps = params.steps if part.trained else 0
    flop = part.flop * ((3 + again) * steps * params.batch_size + validated * (steps // params.val_every + 1)) + extra
    flop += steps * newton_schulz_flop(part.net) if params.optimizer == "muon" else 0.0
    devices = params.num_processes if machine.device.type != "cpu" else 1  # processes on a CPU share its cores
    kept = part.kept * params.micro_batch * (0.5 if use_bf16(params.precision, machine.device) else 1) if steps else 0.0
    weights = 4 * part.num_weights + part.num_trained * (16 if params.ema_decay else 12)
    memory = machine.base + weights + kept
    return Cost(part.stage, machine.start + flop / machine.speed[part.stage] / devices, part.num_weights, flop, memory)


def num_views(sections: Mapping[str, Any], num_photos: int) -> int:
    """Pictures that `cache_latents` encodes: the crops of training photos, held-out photos as they are, and mirror images with `flip`."""
    held_out = round(num_photos * sections["ingest"].val_fraction)
    crops = (num_photos - held_out) * sections["ingest"].crops + held_out
    return int(crops * (1 + sections["cache_latents"].flip))


def latents_bytes(part: Part, sections: Mapping[str, Any], num_photos: int) -> tuple[float, float]:
    """Of data/latents: the moments of the photos, and the token embeddings if each photo has a caption of its own; both float16."""
    (channels, height, width), _, (length, dim) = part.shapes
    moments = num_views(sections, num_photos) * 2 * channels * height * width
    return float(moments * 2), float((num_photos + 1) * length * dim * 2)


def find_photos(raw: Path) -> list[Path]:
    """
    Raises:
        ValueError: there are none.
    """
    found = [raw / path for path in list_files(raw) if path.suffix.lower() in image_suffixes()]
    if not found:
        raise ValueError(f"{raw} holds no photos. `darkroom doctor {raw}` says what is there.")
    return found


def measure_photo(photos: list[Path], params: IngestParams, *, budget: float = 1.0) -> float:
    """Seconds that `ingest` takes for one photo, from as many as take `budget` seconds, at most 8, spread over all."""
    style = PictureStyle.of(params)
    started, num = time.process_time(), 0
    for photo in photos[:: -(-len(photos) // 8)]:
        develop(photo, style, find=_look if params.crop == "subject" else None)
        num += 1
        if time.process_time() - started > budget:
            break
    return (time.process_time() - started) / num


def _look(_: np.ndarray) -> None:
    """In the place of a search for the subject, whose arithmetic is counted: the photo is decoded for it all the same."""


def plan_lines(sections: Mapping[str, Any], raw: Path) -> list[str]:
    """The plan as a table between two sentences, for people; one sentence if a model of it is not here yet.

    Raises:
        ValueError: no photos, or a model that training starts from is missing or does not fit.
    """
    if missing := not_here(sections):
        return [f"Nothing is estimated: {', '.join(missing)} is fetched when its stage starts."]
    start = STARTS * time.process_time()  # it has imported everything by now
    photos, parts = find_photos(raw), networks(sections)
    seconds = measure_photo(photos, sections["ingest"])
    moments, tokens = latents_bytes(parts["train_unet"], sections, len(photos))
    machine = Machine.measure(parts, sections, start=start)
    table = costs(sections, parts, machine, num_photos=len(photos), photo_seconds=seconds)
    return [
        f"{len(photos)} photos in {raw}; {machine.device.type}, {torch.get_num_threads()} threads. "
        "An estimate for a machine that does nothing else:",
        f"{'stage':<14} {'parameters':>10} {'arithmetic':>12} {'time':>8} {'memory':>9}",
        *map(_row, table),
        f"all: {as_time(sum(cost.seconds for cost in table))}, {max(cost.memory for cost in table) / 2**30:.1f} GiB of memory; "
        f"data/latents: {moments / 2**20:.1f} MiB, and up to {tokens / 2**20:.1f} MiB if no two photos share a caption.",
    ]


def _row(cost: Cost) -> str:
    weights = f"{cost.weights / 1e6:.1f} M" if cost.weights else ""
    flop = f"{cost.flop / 1e12:.3g} TFLOP" if cost.flop else ""
    memory = f"{cost.memory / 2**30:.1f} GiB" if cost.memory else ""
    return f"{cost.stage:<14} {weights:>10} {flop:>12} {as_time(cost.seconds):>8} {memory:>9}".rstrip()


def as_time(seconds: float) -> str:
    """`50 s`, `3 min`, `2.5 h`, `4 days`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"
