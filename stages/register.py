"""register: a new version in the MLflow registry; the gate decides on its promotion.

Reads data/vae, data/clip, data/unet, data/report, and the run ids in data/runs. Writes data/registered.json (the decision record).
"""

import json
import shutil
from pathlib import Path
from typing import Any

from darkroom.config import RegisterParams
from darkroom.provenance import write_json
from darkroom.sampling import PARTS
from darkroom.stage import RAW, Contract, Stage
from darkroom.tracking.bundle import BUNDLE, build_bundle
from darkroom.tracking.gate import PromotionRule, Report
from darkroom.tracking.lineage import git_tags, lock_hashes
from darkroom.tracking.registry import register
from darkroom.tracking.store import open_store, project_root, tracking_is_off


def run(stage: Stage[RegisterParams]) -> None:
    params = stage.params
    report = Report.read(json.loads((stage.inputs["report"] / "metrics.json").read_text(encoding="utf-8")))
    record: dict[str, Any]
    if tracking_is_off():
        record = {"decision": "not registered", "reason": "DARKROOM_TRACKING=off", "metrics": report.metrics, "version": None}
    else:
        run_id = stage.tracker.record["run_id"]
        if run_id is None:
            raise ValueError(
                "The model cannot be registered, because MLflow is not available (see the warning above). Check MLFLOW_TRACKING_URI "
                "and run the same command again, or set DARKROOM_TRACKING=off to skip the registry."
            )
        lineage = _lineage(stage)
        bundle = _bundle(stage, lineage, report)
        rule = PromotionRule(params.metric, params.standard_errors, params.max_copied_fraction, params.min_progress)
        store = open_store(project_root(stage.inputs["vae"]))
        record = register(store, params.model_name, bundle=bundle, report=report, run_id=run_id, tags=lineage, rule=rule)
    write_json(stage.outs["registered.json"], record)
    print(_sentence(params.model_name, record))


def _bundle(stage: Stage[RegisterParams], lineage: dict[str, str], report: Report) -> Path:
    folder = stage.scratch / BUNDLE
    if folder.exists():
        shutil.rmtree(folder)  # of an interrupted run
    folder.mkdir(parents=True)
    parts = {part: stage.inputs[part] for part in PARTS}
    build_bundle(folder, name=stage.params.model_name, parts=parts, lineage=lineage, metrics=report.metrics)
    return folder


def _lineage(stage: Stage[RegisterParams]) -> dict[str, str]:
    """Commit; our fingerprint and DVC's md5 of each input and ancestor of the model; the runs that made them."""
    data = stage.inputs["vae"].parent
    fingerprints = {name: index["fingerprint"] for name, index in stage.indexes.items()}
    for index in stage.indexes.values():
        fingerprints |= index["ancestors"]
    hashes = lock_hashes(data.parent)
    tags = git_tags(data)
    tags |= {f"dvc.dep.{name}": value for name, value in sorted(fingerprints.items())}
    tags |= {f"dvc.md5.{name}": hashes[f"data/{name}"] for name in [RAW, *sorted(fingerprints)] if f"data/{name}" in hashes}
    for path in sorted((data / "runs").glob("*.json")):
        run_id = json.loads(path.read_text(encoding="utf-8"))["run_id"]
        if run_id and path.stem != stage.name:
            tags[f"run.{path.stem}"] = run_id
    return tags


def _sentence(name: str, record: dict[str, Any]) -> str:
    if record["version"] is None:
        return f"Nothing was registered: {record['reason']}."
    return f"Version {record['version']} of `{name}` is now {record['decision']}: {record['reason']}."


RUNS = tuple(f"runs/{name}.json" for name in ("ingest", "train_clip", "train_vae", "cache_latents", "train_unet", "evaluate"))
STAGE = Contract("register", run, reads=("vae", "clip", "unet", "report", *RUNS), writes=("registered.json",))

if __name__ == "__main__":
    STAGE.main()
