"""Registered versions and their aliases: champion (live), challenger, previous."""

import json
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

from darkroom.provenance import replacing
from darkroom.tracking.bundle import BUNDLE, save_served_model
from darkroom.tracking.gate import PromotionRule, Report, judge
from darkroom.tracking.store import DATABASE, Store, lock, open_store, project_root, tracking_uri

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
MAX_TAG_CHARACTERS = 5000  # limit of the sqlite store


def open_registry(start: Path | None = None) -> Store:
    """Open the store of the project at or above `start` (default: the current folder). It must exist.

    Raises:
        ValueError: the store is missing or cannot be reached.
    """
    root = project_root(start)
    if tracking_uri(root) == f"sqlite:///{root / DATABASE}" and not (root / DATABASE).is_file():
        raise ValueError(f"{DATABASE} not found in {root}; run this in the project's folder after `dvc repro`, or set MLFLOW_TRACKING_URI.")
    with _plain_errors("MLflow cannot be reached"):
        return open_store(root)


def register(
    store: Store, name: str, *, bundle: Path, report: Report, run_id: str, tags: dict[str, str], rule: PromotionRule
) -> dict[str, Any]:
    """Register `bundle` as the newest version of model `name`, as challenger. Then the gate decides on its promotion.

    Returns:
        The decision record: version, decision, reason, metrics, and the champion before and after.

    Raises:
        ValueError: the rule names a metric that is not in the report, or MLflow failed.
    """
    judge(report, None, rule)  # finds a misspelt metric before anything is stored
    with _plain_errors("The model could not be registered"):
        version = _add_version(store, name, bundle=bundle, report=report, run_id=run_id, tags=tags)
        with lock(store.root):
            return _decide(store, name, version, report, rule)


def promote(store: Store, name: str, version: int | None = None) -> dict[str, Any]:
    """Make `version` (default: the challenger) the champion, whatever the gate decided. The old champion becomes `previous`.

    Raises:
        ValueError: unknown model or version, no challenger, or the version is already the champion.
    """
    with lock(store.root), _plain_errors(f"`{name}` could not be promoted"):
        aliases = _aliases(store, name)
        chosen = aliases.get(CHALLENGER) if version is None else version
        if chosen is None:
            raise ValueError(f"`{name}` has no challenger; give the version to promote. Aliases: {_show(aliases)}.")
        if chosen == aliases.get(CHAMPION):
            raise ValueError(f"Version {chosen} of `{name}` is already the champion.")
        store.client.get_model_version(name, str(chosen))
        _set_champion(store, name, chosen, aliases)
        return {"model_name": name, "champion": {"before": aliases.get(CHAMPION), "after": chosen}}


def rollback(store: Store, name: str) -> dict[str, Any]:
    """Swap `champion` and `previous`. A second rollback undoes the first.

    Raises:
        ValueError: unknown model, or it has no previous champion.
    """
    with lock(store.root), _plain_errors(f"`{name}` could not be rolled back"):
        aliases = _aliases(store, name)
        if PREVIOUS not in aliases or CHAMPION not in aliases:
            raise ValueError(f"`{name}` has no previous champion. Aliases: {_show(aliases)}.")
        _set_champion(store, name, aliases[PREVIOUS], aliases)
        return {"model_name": name, "champion": {"before": aliases[CHAMPION], "after": aliases[PREVIOUS]}}


def registered_folder(uri: str, start: Path | None = None) -> Path:
    """Return the local folder of `models:/NAME@ALIAS` or `models:/NAME/VERSION`, as `registered_version` does."""
    return registered_version(uri, start)[1]


def registered_version(uri: str, start: Path | None = None) -> tuple[str, Path]:
    """Return what `models:/NAME@ALIAS` or `models:/NAME/VERSION` is now: its `models:/NAME/VERSION`, which never moves, and its local
    folder with clip/, vae/, unet/, lineage.json, README.md.

    A store on this machine is read in place; from a server each version is fetched once, into .scratch/registry.

    Raises:
        ValueError: an invalid URI, or an unknown model, alias or version.
    """
    match = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", uri)
    if not match:
        raise ValueError(f"{uri!r} is not the URI of a registered model; write models:/NAME@champion or models:/NAME/3.")
    name, alias, number = match.groups()
    store = open_registry(start)
    with _plain_errors(f"{uri} cannot be found"):
        aliases = _aliases(store, name)
        if alias and alias not in aliases:
            raise ValueError(f"`{name}` has no alias {alias!r}. Aliases: {_show(aliases)}.")
        version = store.client.get_model_version(name, number or str(aliases[alias]))
        return f"models:/{name}/{version.version}", _fetch(store, version)


def _add_version(store: Store, name: str, *, bundle: Path, report: Report, run_id: str, tags: dict[str, str]) -> int:
    from mlflow.entities import LoggedModelStatus, Metric
    from mlflow.exceptions import MlflowException

    client = store.client
    model = client.create_logged_model(store.experiment_id, name=name, source_run_id=run_id, model_type="text-to-image")
    with tempfile.TemporaryDirectory() as folder:
        save_served_model(Path(folder) / "model", bundle, run_id=run_id, model_id=model.model_id)
        client.log_model_artifacts(model.model_id, f"{folder}/model")
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    now = time.time_ns() // 1_000_000
    client.log_batch(run_id, metrics=[Metric(key, value, now, 0, model_id=model.model_id) for key, value in report.metrics.items()])
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    all_tags = {**tags, "metrics": json.dumps(report.metrics, sort_keys=True), "eval_key": report.eval_key}
    with _global_uri(store.uri):
        version = client.create_model_version(name, f"models:/{model.model_id}", run_id, tags=all_tags, model_id=model.model_id)
    return int(version.version)


@contextmanager
def _global_uri(uri: str) -> Iterator[None]:
    """Set MLflow's global store: parts of MLflow 3.17 read it instead of the store that they are given."""
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # back to the environment's; this call also deletes the variable
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


def _decide(store: Store, name: str, version: int, report: Report, rule: PromotionRule) -> dict[str, Any]:
    store.client.set_registered_model_alias(name, CHALLENGER, str(version))
    aliases = _aliases(store, name)
    before = aliases.get(CHAMPION)
    verdict = judge(report, None if before is None else _report_of(store, name, before), rule)
    store.client.set_model_version_tag(name, str(version), "gate", "passed" if verdict.passed else "failed")
    store.client.set_model_version_tag(name, str(version), "gate.reason", verdict.reason[:MAX_TAG_CHARACTERS])
    if verdict.passed:
        _set_champion(store, name, version, aliases)
    return {
        "model_name": name,
        "version": version,
        "decision": "champion" if verdict.passed else "challenger",
        "reason": verdict.reason,
        "metrics": report.metrics,
        "eval_key": report.eval_key,
        "champion": {"before": before, "after": version if verdict.passed else before},
    }


def _set_champion(store: Store, name: str, version: int, aliases: dict[str, int]) -> None:
    """Sets `previous` first, so that after an interruption a champion exists and the old one is known."""
    if CHAMPION in aliases:
        store.client.set_registered_model_alias(name, PREVIOUS, str(aliases[CHAMPION]))
    store.client.set_registered_model_alias(name, CHAMPION, str(version))
    if aliases.get(CHALLENGER) == version:
        store.client.delete_registered_model_alias(name, CHALLENGER)


def _report_of(store: Store, name: str, version: int) -> Report:
    tags = store.client.get_model_version(name, str(version)).tags
    return Report(json.loads(tags["metrics"]), tags["eval_key"])


def _aliases(store: Store, name: str) -> dict[str, int]:
    return {alias: int(version) for alias, version in store.client.get_registered_model(name).aliases.items()}


def _show(aliases: dict[str, int]) -> str:
    return ", ".join(f"{alias} = version {version}" for alias, version in sorted(aliases.items())) or "none"


def _fetch(store: Store, version: "ModelVersion") -> Path:
    from mlflow.artifacts import download_artifacts

    assert version.source  # we registered it
    location = urlparse(store.client.get_logged_model(version.source.removeprefix("models:/")).artifact_location)
    folder = Path(unquote(location.path)) / "artifacts" / BUNDLE
    if location.scheme == "file" and folder.is_dir():
        return folder
    copy = store.root / ".scratch" / "registry" / version.name / str(version.version)
    if not copy.is_dir():
        with replacing(copy) as tmp, _global_uri(store.uri):
            tmp.mkdir()
            source = f"models:/{version.name}/{version.version}/artifacts/{BUNDLE}"
            download_artifacts(artifact_uri=source, dst_path=str(tmp), tracking_uri=store.uri, registry_uri=store.uri)
    return copy / "artifacts" / BUNDLE


@contextmanager
def _plain_errors(what: str) -> Iterator[None]:
    """Turn MLflow's errors into a ValueError of one sentence."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise ValueError(f"{what}: {' '.join(error.message.split())}") from error
