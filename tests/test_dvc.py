"""The real dvc.yaml under the real DVC, with tiny parameters: what an edit of the code re-runs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_run import STAGES, make_project

ROOT = Path(__file__).parents[1]
COPIED = ("darkroom", "stages", "dvc.yaml", ".dvcignore", ".gitignore", "data/.gitignore")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not shutil.which("git"), reason="there is no git")]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with tracked photos, whose stages have all run."""
    root = tmp_path_factory.mktemp("clone")
    make_project(root)
    for name in COPIED:
        source, target = ROOT / name, root / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    run(root, "git", "init", "--quiet")
    dvc(root, "init", "--quiet")
    dvc(root, "add", "--quiet", "data/raw")
    assert ran(root) == ["code", *STAGES]
    commit(root)
    return root


def run(root: Path, *command: str) -> str:
    ended = subprocess.run(command, cwd=root, env=environment(root), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def environment(root: Path) -> dict[str, str]:
    own = {"DARKROOM_TRACKING": "off", "DVC_NO_ANALYTICS": "1", "GIT_CONFIG_GLOBAL": os.devnull, "PYTHONPATH": str(root)}
    return os.environ | own


def dvc(root: Path, *arguments: str) -> str:
    return run(root, sys.executable, "-m", "dvc", *arguments)


def ran(root: Path, *arguments: str) -> list[str]:
    """The stages that `dvc repro` runs."""
    lines = dvc(root, *(arguments or ("repro",))).splitlines()
    return [line.split("'")[1] for line in lines if line.startswith("Running stage ")]


def outputs(root: Path) -> set[str]:
    """What the stages have left in data/, but for the code identities, which cost nothing."""
    return {str(path.relative_to(root)) for path in (root / "data").rglob("*") if path.is_file() and "code" not in path.parts}


def refused(root: Path) -> str:
    """What a `dvc repro` that must fail says."""
    ended = subprocess.run(
        [sys.executable, "-m", "dvc", "repro"], cwd=root, env=environment(root), capture_output=True, text=True, check=False
    )
    assert ended.returncode != 0, ended.stdout
    assert "Traceback" not in ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def commit(root: Path) -> None:
    run(root, "git", "add", "--all")
    run(root, "git", "-c", "user.name=A", "-c", "user.email=a@example.org", "commit", "--quiet", "--message", "state")


def edit(root: Path, file: str, old: str, new: str) -> None:
    path = root / "darkroom" / file
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_nothing_is_run_again_for_what_only_people_read(project: Path) -> None:
    assert ran(project) == ["code"]
    edit(project, "training/losses.py", "return nats.flatten(1).sum(1)", "return nats.flatten(1).sum(1)  # nats")
    assert ran(project) == ["code"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "caption_dropout:",
            "caption_droput:",
            "`train_unet.caption_droput` is not a parameter; did you mean `train_unet.caption_dropout`?",
        ),
        ("side: 16", "side: 15", "`ingest.side` is 15: it must be greater than or equal to 16"),
        ("side: 16", "side: 18", "`ingest.side` is 18, so that the latents are 9 wide, but `train_unet.model.block_out_channels` halves"),
        ("evaluate:", "evaluat:", "`evaluat` is not a section; did you mean `evaluate`?"),
        ("train_unet:", "train_unett:", "`train_unett` is not a section; did you mean `train_unet`?"),
    ],
)
def test_a_mistake_in_the_parameters_leaves_what_the_last_run_made(project: Path, old: str, new: str, message: str) -> None:
    """DVC removes the outputs of a stage before it starts the stage."""
    before, params = outputs(project), project / "params.yaml"
    text = params.read_text(encoding="utf-8")
    assert text.count(old) >= 1
    params.write_text(text.replace(old, new, 1), encoding="utf-8")
    try:
        assert message in refused(project)
        assert outputs(project) == before
    finally:
        params.write_text(text, encoding="utf-8")
    assert ran(project) == ["code"]


@pytest.mark.parametrize("content", ["", "ingest: [1\n"])
def test_a_broken_file_of_parameters_leaves_what_the_last_run_made(project: Path, content: str) -> None:
    """As the shell leaves it, if `darkroom params` refuses the preset in `darkroom params PRSET > params.yaml`."""
    before, params = outputs(project), project / "params.yaml"
    text = params.read_text(encoding="utf-8")
    params.write_text(content, encoding="utf-8")
    try:
        refused(project)
        assert outputs(project) == before
    finally:
        params.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("tracked", [True, False])
def test_missing_photos_leave_what_the_last_run_made(project: Path, tracked: bool) -> None:
    before, raw, file = outputs(project), project / "data" / "raw", project / "data" / "raw.dvc"
    raw.rename(project / "elsewhere")
    pointer = file.read_text(encoding="utf-8")
    if not tracked:
        file.unlink()
    try:
        assert ("data/raw holds no photos" in refused(project)) != tracked
        assert {name for name in before if "raw" not in name} <= outputs(project)
    finally:
        (project / "elsewhere").rename(raw)
        file.write_text(pointer, encoding="utf-8")


def test_an_edit_reruns_its_stages_and_equal_bytes_end_it_there(project: Path) -> None:
    edit(project, "training/losses.py", "return nats.flatten(1).sum(1)", "return nats.flatten(1).sum(dim=1)")
    assert ran(project) == ["code", "train_vae", "evaluate", "register"]  # not cache_latents: data/vae has the bytes of before
    assert ran(project) == ["code"]


def test_an_edit_that_changes_bytes_reruns_what_follows(project: Path) -> None:
    edit(project, "training/losses.py", "return 0.5 * (mean.square()", "return 0.6 * (mean.square()")
    assert ran(project) == ["code", "train_vae", "cache_latents", "train_unet", "evaluate", "register"]


def test_one_stage_can_be_run_alone(project: Path) -> None:
    assert ran(project, "repro", "--single-item", "train_clip") == []
    assert ran(project, "repro", "--single-item", "--force", "register") == ["register"]


def test_an_experiment_runs_in_a_folder_of_its_own(project: Path) -> None:
    commit(project)
    changed = "register.max_copied_fraction=0.7"
    assert ran(project, "exp", "run", "--temp", "--name", "stricter", "--set-param", changed) == ["code", "register"]
    assert "stricter" in dvc(project, "exp", "show", "--csv")
