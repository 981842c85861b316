"""Train and evaluate variants of a preset on the same photos, and write one row of a CSV for each variant and seed.

    python -m benchmarks.ablation VARIANTS.yaml --photos DIR --work DIR --out benchmarks/results/NAME.csv

VARIANTS.yaml names a preset, changes of it that all variants share, the seeds, and the variants: a name, and its changes by section. A
stage whose parameters and inputs two variants have in common runs once. A row that the CSV has is not measured again, so a run that was
stopped goes on. Time is CPU time of all threads, which a busy machine changes less than the clock.
"""

import argparse
import csv
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from darkroom.data.doctor import list_files
from darkroom.params_file import checked, defaults, merged, read_preset, read_yaml
from darkroom.params_text import params_text
from darkroom.provenance import hash_json
from darkroom.source_code import code_identity

STAGES = ("ingest", "train_clip", "train_vae", "cache_latents", "train_unet", "evaluate")
METRICS = (  # of evaluate
    *("recognised", "recognised_photos", "recognised_reconstructions", "recognised_chance"),
    *("kid", "kid_low", "kid_high", "copied_fraction", "precision", "recall", "reconstruction_psnr"),
)
COLUMNS = ("variant", "seed", "pictures", "train_unet_cpu_seconds", "val_loss", "recognised_of_photos", *METRICS)


class Run(NamedTuple):
    """A variant with a seed."""

    variant: str
    seed: int
    changes: Mapping[str, Mapping[str, Any]]  # of the defaults, by section


def runs(plan: Mapping[str, Any]) -> Iterator[Run]:
    """All variants with the first seed, then all with the second, so that an early stop leaves a fair comparison.

    Raises:
        ValueError: the preset is unknown.
    """
    shared = merged(read_preset(plan["preset"]), plan.get("changes") or {})
    for seed in plan["seeds"]:
        for variant, changes in plan["variants"].items():
            yield Run(variant, seed, merged(merged(shared, changes or {}), {"train_unet": {"seed": seed}}))


def folders(run: Run, photos: Path, work: Path) -> dict[str, Path]:
    """The folder of each stage; two runs share those whose photos, code and parameters, and those of all stages before them, are equal.

    Raises:
        ValueError: an unknown parameter, or a value that it cannot have.
    """
    params = checked(merged(defaults(), run.changes), work)
    key, found = hash_json([[str(path), (photos / path).stat().st_size] for path in list_files(photos)]), {}
    for stage in STAGES:
        key = hash_json([key, params[stage].model_dump(), code_identity(stage)])
        found[stage] = work / f"{stage}-{key[:12]}"
    return found


def measure(run: Run, photos: Path, work: Path) -> dict[str, Any]:
    """Run the stages that have not run yet; the row of the CSV.

    Raises:
        ValueError: a wrong parameter.
        CalledProcessError: a stage failed.
    """
    before, found = photos, folders(run, photos, work)
    for stage, folder in found.items():
        if not (folder / "seconds.txt").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            _start(folder, before, photos=photos)
            (folder / "params.yaml").write_text(params_text(run.changes, command="benchmarks.ablation"), encoding="utf-8")
            print(f"{run.variant}, seed {run.seed}: {stage}", flush=True)
            (folder / "seconds.txt").write_text(f"{_run(stage, folder):.1f}")
        before = folder
    return row(run, found)


def _start(folder: Path, before: Path, *, photos: Path) -> None:
    """A project with links to what the stages before have written."""
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "raw").symlink_to(photos.resolve())
    for item in (before / "data").iterdir() if (before / "seconds.txt").is_file() else ():
        if item.name not in ("raw", "runs"):
            (folder / "data" / item.name).symlink_to(item.resolve())


def _run(stage: str, folder: Path) -> float:
    """CPU seconds of a stage."""
    started = _cpu_seconds()
    environment = os.environ | {"DARKROOM_TRACKING": "off", "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([sys.executable, "-m", f"stages.{stage}"], cwd=folder, env=environment, check=True)
    return _cpu_seconds() - started


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def row(run: Run, found: Mapping[str, Path]) -> dict[str, Any]:
    metrics = json.loads((found["evaluate"] / "data" / "report" / "metrics.json").read_text(encoding="utf-8"))
    unet = read_yaml(found["train_unet"] / "params.yaml")["train_unet"]
    floor = metrics.get("recognised_chance", 0.0)
    reach = metrics.get("recognised_photos", floor) - floor
    return {
        "variant": run.variant,
        "seed": run.seed,
        "pictures": unet["steps"] * unet["batch_size"],
        "train_unet_cpu_seconds": float((found["train_unet"] / "seconds.txt").read_text()),
        "val_loss": json.loads((found["train_unet"] / "data" / "unet" / "metrics.json").read_text(encoding="utf-8"))["loss"],
        "recognised_of_photos": (metrics["recognised"] - floor) / reach if reach > 0 else "",
        **{name: metrics.get(name, "") for name in METRICS},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", type=Path, help="the plan: preset, changes, seeds, variants")
    parser.add_argument("--photos", type=Path, required=True, help="folder of photos")
    parser.add_argument("--work", type=Path, required=True, help="folder for the outputs of stages; may be deleted afterwards")
    parser.add_argument("--out", type=Path, required=True, help="CSV to which rows are added")
    given = parser.parse_args()
    known = list(csv.DictReader(given.out.open(encoding="utf-8"))) if given.out.is_file() else []
    for run in runs(read_yaml(given.variants)):
        if any((line["variant"], line["seed"]) == (run.variant, str(run.seed)) for line in known):
            continue
        measured = measure(run, given.photos, given.work)
        with given.out.open("a", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if not file.tell():
                writer.writeheader()
            writer.writerow({name: f"{value:.6g}" if isinstance(value, float) else value for name, value in measured.items()})


if __name__ == "__main__":
    main()
