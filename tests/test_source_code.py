"""Which edit re-runs which stage, and that a stage runs nothing of ours outside its code identity."""

import ast
import importlib
import shutil
import sys
import threading
from collections import defaultdict
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from darkroom import source_code
from darkroom.source_code import PACKAGES, PARAMETERS, WATCHING, Module, code_identity, load_module, stage_names
from tests.tiny_run import STAGES, make_project, run_stage

ROOT = Path(__file__).parents[1]
TRAINED = {"train_clip", "train_vae", "train_unet"}


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the code that a test may edit, in place of the one that runs."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(source_code, "ROOT", tmp_path)
    return tmp_path


ORIGINALS: dict[str, Module] = {}  # modules as they stand in the project: parsed once, not once a test


def identities() -> dict[str, dict[str, str]]:
    modules: dict[str, Module] = {}

    def load(name: str) -> Module:
        if name not in modules:
            path = source_code.path_of(name)
            original = ROOT / path.relative_to(source_code.ROOT)
            if original.is_file() and original.read_bytes() == path.read_bytes():
                modules[name] = ORIGINALS[name] = ORIGINALS.get(name) or Module(name, path)
            else:
                modules[name] = Module(name, path)
        return modules[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source_code, "load_module", load)
        return {name: code_identity(name) for name in stage_names()}


def rerun_by(tree: Path, old: str, new: str) -> set[str]:
    """The stages whose code is another one when `old`, which stands once in the tree, becomes `new`."""
    before = identities()
    [file] = [path for path in tree.rglob("*.*") if path.suffix in (".py", ".j2") and old in path.read_text(encoding="utf-8")]
    text = file.read_text(encoding="utf-8")
    assert text.count(old) == 1
    file.write_text(text.replace(old, new), encoding="utf-8")
    after = identities()
    return {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize(
    ("old", "new", "stages"),
    [
        pytest.param("(images - reconstruction).square()", "(images - reconstruction).pow(2)", {"train_vae", "evaluate"}, id="loss"),
        pytest.param("exponents = -math.log(10_000)", "exponents = -math.log(20_000)", {"train_unet", "evaluate", "register"}, id="layer"),
        pytest.param("eta: float = 0.0)", "eta: float = 0.1)", {"evaluate", "register"}, id="default of a sampler"),
        pytest.param("LEAST_PROBABILITY = 1 / 512", "LEAST_PROBABILITY = 1 / 256", {"train_vae", "evaluate"}, id="constant"),
        pytest.param("WINDOW_SIGMA = 1.5", "WINDOW_SIGMA = 2.5", {"train_vae", "cache_latents", "evaluate"}, id="constant of a metric"),
        pytest.param("digest[:16], 16) < share", "digest[:16], 16) <= share", {"ingest"}, id="split"),
        pytest.param("TEMPERATURE = 100.0", "TEMPERATURE = 90.0", {"ingest"}, id="crop to the subject"),
        pytest.param('<html lang="en">', "<html>", {"ingest", "evaluate"}, id="template of all pages"),
        pytest.param(".strip.two {", ".a {}\n.strip.two {", {"evaluate"}, id="template of a page"),
        pytest.param("limits=(1, inf), served=True", "limits=(1, inf), served=False", {"evaluate", "register"}, id="drawing option"),
        pytest.param("return self.batch_size // (", "return self.batch_size // 2 // (", TRAINED, id="property of parameters"),
        pytest.param("if len(self.attention) != len", "if 2 + len(self.attention) != len", {"train_unet"}, id="check of parameters"),
        pytest.param('"--mixed_precision", "no"', '"--mixed_precision", "bf16"', {*TRAINED, "evaluate"}, id="launcher of training"),
        pytest.param('"--untracked-files=no"', '"--untracked-files=all"', {"register"}, id="lineage of a registered version"),
        pytest.param("steps: Annotated[int, Option", "steps: Annotated[float, Option", {"evaluate", "register"}, id="type that code reads"),
        pytest.param("photo.with_suffix('.txt')} is not UTF-8", "photo.with_suffix('.txt')} is broken", {"ingest"}, id="text of an output"),
        pytest.param(
            "import classifier_free, clip_guidance",
            "import classifier_free as clip_guidance, clip_guidance as classifier_free",
            {"evaluate", "register"},
            id="meaning of an imported name",
        ),
    ],
)  # fmt: skip
def test_an_edit_that_can_change_bytes_reruns_the_stages_that_reach_it(tree: Path, old: str, new: str, stages: set[str]) -> None:
    assert rerun_by(tree, old, new) == stages


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("    return nats.flatten(1).sum(1)", "    return nats.flatten(1).sum(1)  # nats", id="comment"),
        pytest.param('"""KL(N(mean, exp(logvar))', '"""The divergence KL(N(mean, exp(logvar))', id="docstring"),
        pytest.param("def kl_divergence(mean: Tensor, logvar: Tensor) -> Tensor:", "def kl_divergence(mean, logvar):", id="type hint"),
        pytest.param(
            'description="Side of the square images, px"', 'description="Side of the images, px"', id="description of a parameter"
        ),
        pytest.param(
            "class TrainVaeParams(TrainingParams):", "class TrainVaeParams(TrainingParams):\n    dummy: int = 3", id="new parameter"
        ),
        pytest.param('Option("Sampler"', 'Option("Sampling method"', id="help of a drawing option"),
        pytest.param("COLUMNS = 8\n\n\nclass SamplePreview", "COLUMNS = 4\n\n\nclass SamplePreview", id="preview"),
        pytest.param("SECONDS_BETWEEN_LINES = 5.0", "SECONDS_BETWEEN_LINES = 4.0", id="progress"),
        pytest.param("SECONDS_TO_WAIT_FOR_LOCK = 120", "SECONDS_TO_WAIT_FOR_LOCK = 60", id="tracking"),
        pytest.param("only if every output is in place.", "only if all outputs are in place.", id="docstring of a method"),
        pytest.param("is damaged and is skipped", "is damaged and was skipped", id="log message"),
        pytest.param("must map stage names to their parameters", "maps stage names to their parameters", id="message of an error"),
        pytest.param("No incomplete output was left.", "Nothing incomplete was left.", id="message of sys.exit"),
        pytest.param("Start it again to resume from there.", "Start it again.", id="message of an interruption"),
        pytest.param("interrupted. No incomplete output was", "stopped. No incomplete output was", id="message of a stopped stage"),
        pytest.param(
            "from darkroom.training.vae_task import VaeTask, fit_linear, measure_latents",
            "from typing import Any\n\nfrom darkroom.training.vae_task import VaeTask, fit_linear, measure_latents",
            id="import for a type hint",
        ),
        pytest.param('desc="encode photos"', 'desc="photos"', id="name of a progress bar"),
    ],
)
def test_an_edit_that_only_people_read_reruns_nothing(tree: Path, old: str, new: str) -> None:
    assert rerun_by(tree, old, new) == set()


def test_a_tree_without_comments_and_in_another_layout_is_the_same_code(tree: Path) -> None:
    before = identities()
    for path in tree.rglob("*.py"):
        path.write_text(ast.unparse(ast.parse(path.read_text(encoding="utf-8"))), encoding="utf-8")
    assert identities() == before


def test_a_file_that_no_stage_imports_reruns_nothing_until_one_does(tree: Path) -> None:
    (tree / "darkroom" / "training" / "invented.py").write_text("import math\n\n\ndef invented():\n    return math.tau\n")
    old = "def kl_divergence("
    assert rerun_by(tree, old, f"from darkroom.training import invented\n\n\n{old}") == set()  # not used yet
    assert rerun_by(tree, "    return 0.5 * (mean.square() +", "    return invented.invented() * (mean.square() +") == {
        "train_vae",
        "evaluate",
    }
    assert rerun_by(tree, "math.tau", "math.pi") == {"train_vae", "evaluate"}


def test_a_module_that_is_reached_through_its_package_counts(tree: Path) -> None:
    (tree / "darkroom" / "training" / "invented.py").write_text("def invented():\n    return 0.5\n")
    losses = tree / "darkroom" / "training" / "losses.py"
    text = losses.read_text(encoding="utf-8").replace("return 0.5 * (mean", "return training.invented.invented() * (mean")
    losses.write_text(f"from darkroom import training\n{text}", encoding="utf-8")
    assert rerun_by(tree, "return 0.5\n", "return 0.6\n") == {"train_vae", "evaluate"}


def test_what_an_import_does_beside_binding_names_counts(tree: Path) -> None:
    file = tree / "darkroom" / "training" / "losses.py"
    before = identities()
    file.write_text(file.read_text(encoding="utf-8") + "\ntorch.set_num_threads(1)\n", encoding="utf-8")
    after = identities()
    assert {"train_clip", "train_vae", "train_unet"} <= {name for name in before if before[name] != after[name]}


class Executed:
    """Collects the definitions of ours that run, but for those that a module of WATCHING started."""

    def __init__(self) -> None:
        self.names: set[tuple[str, str]] = set()
        self._inside: dict[int, int] = defaultdict(int)  # thread -> calls of watching modules that are under way

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if event not in ("call", "return"):
            return
        module = frame.f_globals.get("__name__", "")
        if module.split(".")[0] not in PACKAGES:
            return
        thread = threading.get_ident()
        if module in WATCHING:
            self._inside[thread] += 1 if event == "call" else -1
        elif event == "call" and not self._inside[thread]:
            self.names.add((module, frame.f_code.co_qualname.split(".")[0]))


@pytest.mark.slow
def test_a_stage_runs_nothing_outside_its_code_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_TRACKING", "off")
    make_project(tmp_path, cache_latents={"gate": {"min_psnr": 1.0, "min_ssim": -1.0, "max_frechet": 1e9}})
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if path.stem != "served_model"):
        importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))  # classes run when made
    for name in STAGES:
        executed = Executed()
        threading.setprofile(executed)
        sys.setprofile(executed)
        try:
            run_stage(name, tmp_path)
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
        ran = {f"{module}:{top}" for module, top in executed.names if top in load_module(module).bindings}  # not what dataclasses make
        assert len(ran) > 10
        unseen = {use for use in ran - set(code_identity(name)) if use.split(":")[0] not in PARAMETERS}  # checks of other sections
        assert not unseen, f"{name} runs it, and an edit of it would be passed over"
