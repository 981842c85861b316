"""The lineage of a run: its point in the experiment space, the git commit, the hashes in dvc.lock."""

import os
import subprocess
from pathlib import Path
from typing import Any

from darkroom.params_file import read_yaml
from darkroom.provenance import hash_file, hash_json


def git_tags(folder: Path) -> dict[str, str]:
    """`git.commit` and `git.dirty` (tracked files only); empty outside a git repository or before its first commit."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return {}
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"git.commit": commit, "git.dirty": str(bool(changes)).lower()}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def pipeline_key(folder: Path, params_file: Path) -> str:
    """Hash of one point in the experiment space: parameters, graph, commit and name of the DVC experiment.

    In a DVC experiment the commit is the baseline that the user started from, not a commit that DVC made.
    """
    files = {path.name: hash_file(path) for path in (params_file, folder / "dvc.yaml") if path.is_file()}
    commit = os.environ.get("DVC_EXP_BASELINE_REV") or git_tags(folder).get("git.commit")
    return hash_json([sorted(files.items()), commit, os.environ.get("DVC_EXP_NAME")])[:16]


def pipeline_name(folder: Path) -> str:
    """Readable name of that point: the DVC experiment, the short commit, or the folder (outside git)."""
    commit = git_tags(folder).get("git.commit")
    return os.environ.get("DVC_EXP_NAME") or (commit[:7] if commit else folder.name)


def lock_hashes(folder: Path) -> dict[str, str]:
    """path -> md5 of every dependency and output in dvc.lock.

    DVC writes the file after each stage, so it already has the outputs that a running stage reads.
    """
    if not (folder / "dvc.lock").is_file():
        return {}
    stages: dict[str, Any] = read_yaml(folder / "dvc.lock").get("stages", {})
    entries = [entry for kind in ("deps", "outs") for stage in stages.values() for entry in stage.get(kind, [])]
    return {entry["path"]: entry["md5"] for entry in entries if "md5" in entry}
