"""Versions, names, gate and pyfunc in a real MLflow store, with a bundle of stand-in parts."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock, create_autospec

import numpy as np
import pytest
import torch
from PIL import Image

from darkroom.sampling import PARTS
from darkroom.tracking.bundle import BUNDLE, REQUIREMENTS, build_bundle
from darkroom.tracking.gate import PromotionRule, Report
from darkroom.tracking.registry import open_registry, promote, register, registered_folder, registered_version, rollback
from darkroom.tracking.store import Store, open_store
from tests.test_architecture import TREES, closure
from tests.test_architecture import imported as imports_of

REPOSITORY = Path(__file__).parents[2]
RULE = PromotionRule(metric="kid", standard_errors=2.0, max_copied_fraction=0.01, min_progress=0.5)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database: Path) -> Store:
    for name in ("MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    shutil.copy(database, tmp_path)
    (tmp_path / "params.yaml").write_text("a: 1\n")
    return open_store(tmp_path)


def make_bundle(root: Path, weights: bytes = b"weights") -> Path:
    parts = {part: root / "data" / part for part in PARTS}
    for part in parts.values():
        part.mkdir(parents=True, exist_ok=True)
        (part / "model.safetensors").write_bytes(weights)
    defaults = {"steps": 7, "sampler": "euler", "guidance_scale": 2.5, "spacing": "karras"}
    (parts["unet"] / "diffusion.json").write_text(json.dumps(defaults))
    return make_bundle_of(root, BUNDLE)


def make_bundle_of(root: Path, name: str) -> Path:
    folder = root / ".scratch" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    parts = {part: root / "data" / part for part in PARTS}
    build_bundle(folder, name="cats", parts=parts, lineage={"git.commit": "c0ffee"}, metrics={"kid": 0.25})
    return folder


def add(store: Store, kid: float, *, weights: bytes = b"weights", copied: float = 0.0, eval_key: str = "key") -> dict[str, Any]:
    run = store.client.create_run(store.experiment_id)
    report = Report({"kid": kid, "copied_fraction": copied, "copied_fraction_low": copied}, eval_key)
    bundle = make_bundle(store.root, weights)
    return register(store, "cats", bundle=bundle, report=report, run_id=run.info.run_id, tags={"git.commit": "c0ffee"}, rule=RULE)


def names(store: Store) -> dict[str, int]:
    return {alias: int(version) for alias, version in store.client.get_registered_model("cats").aliases.items()}


def test_the_first_version_becomes_champion_with_its_lineage(store: Store) -> None:
    record = add(store, 1.0)
    assert record == {
        "model_name": "cats",
        "version": 1,
        "decision": "champion",
        "reason": "it is the first champion",
        "metrics": {"kid": 1.0, "copied_fraction": 0.0, "copied_fraction_low": 0.0},
        "eval_key": "key",
        "champion": {"before": None, "after": 1},
    }
    version = store.client.get_model_version("cats", "1")
    assert version.tags["git.commit"] == "c0ffee"
    assert version.tags["gate"] == "passed"
    assert version.tags["gate.reason"] == "it is the first champion"
    assert version.tags["eval_key"] == "key"
    assert json.loads(version.tags["metrics"]) == record["metrics"]
    assert names(store) == {"champion": 1}


def test_registering_leaves_the_environment_as_it_was(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    add(store, 1.0)
    assert "MLFLOW_TRACKING_URI" not in os.environ
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    add(store, 1.0)
    assert os.environ["MLFLOW_TRACKING_URI"] == store.uri


def test_the_numbers_are_bound_to_the_model_and_to_its_run(store: Store) -> None:
    add(store, 1.0)
    version = store.client.get_model_version("cats", "1")
    model = store.client.get_logged_model(version.source.removeprefix("models:/"))
    assert {metric.key: metric.value for metric in model.metrics} == {"kid": 1.0, "copied_fraction": 0.0, "copied_fraction_low": 0.0}
    assert store.client.get_run(version.run_id).data.metrics["kid"] == 1.0


def test_a_worse_challenger_is_kept_out_and_a_better_one_takes_over(store: Store) -> None:
    add(store, 1.0)
    worse = add(store, 2.0)
    assert worse["decision"] == "challenger"
    assert worse["champion"] == {"before": 1, "after": 1}
    assert names(store) == {"champion": 1, "challenger": 2}
    assert store.client.get_model_version("cats", "2").tags["gate"] == "failed"
    better = add(store, 0.5)
    assert better["champion"] == {"before": 1, "after": 3}
    assert names(store) == {"champion": 3, "previous": 1}


def test_a_first_version_that_copies_photos_does_not_become_champion(store: Store) -> None:
    assert add(store, 1.0, copied=0.9)["decision"] == "challenger"
    assert names(store) == {"challenger": 1}


def test_promote_makes_the_challenger_champion_whatever_the_gate_decided(store: Store) -> None:
    add(store, 1.0)
    add(store, 2.0)
    assert promote(store, "cats") == {"model_name": "cats", "champion": {"before": 1, "after": 2}}
    assert names(store) == {"champion": 2, "previous": 1}


def test_promote_can_name_an_older_version_and_leaves_the_challenger(store: Store) -> None:
    for kid in (1.0, 0.5, 0.7):
        add(store, kid)
    promote(store, "cats", 1)
    assert names(store) == {"champion": 1, "previous": 2, "challenger": 3}


def test_rollback_brings_the_old_weights_back_and_twice_changes_nothing(store: Store) -> None:
    add(store, 1.0, weights=b"old")
    add(store, 0.5, weights=b"new")

    def live() -> bytes:
        return (registered_folder("models:/cats@champion", store.root) / "unet" / "model.safetensors").read_bytes()

    assert live() == b"new"
    assert rollback(store, "cats") == {"model_name": "cats", "champion": {"before": 2, "after": 1}}
    assert live() == b"old"
    rollback(store, "cats")
    assert live() == b"new"
    folders = [registered_version(uri, store.root) for uri in ("models:/cats@champion", "models:/cats/2")]
    assert folders == [("models:/cats/2", registered_folder("models:/cats/2", store.root))] * 2


def test_what_cannot_be_promoted_or_rolled_back_is_explained(store: Store) -> None:
    with pytest.raises(ValueError, match="`cats` could not be promoted: Registered Model with name=cats not found"):
        promote(store, "cats")
    with pytest.raises(ValueError, match="`cats` could not be rolled back"):
        rollback(store, "cats")
    add(store, 1.0)
    with pytest.raises(ValueError, match=r"has no challenger; give the version to promote. Aliases: champion = version 1"):
        promote(store, "cats")
    with pytest.raises(ValueError, match="Version 1 of `cats` is already the champion"):
        promote(store, "cats", 1)
    with pytest.raises(ValueError, match="could not be promoted: Model Version"):
        promote(store, "cats", 9)
    with pytest.raises(ValueError, match="no previous champion"):
        rollback(store, "cats")


def test_a_misspelt_metric_is_found_before_anything_is_registered(store: Store) -> None:
    run = store.client.create_run(store.experiment_id)
    with pytest.raises(ValueError, match="Metric `kdi` is missing"):
        register(
            store,
            "cats",
            bundle=make_bundle(store.root),
            report=Report({"kid": 1.0, "copied_fraction": 0.0, "copied_fraction_low": 0.0}, "key"),
            run_id=run.info.run_id,
            tags={},
            rule=PromotionRule("kdi", 2.0, 0.5, 0.0),
        )
    assert not store.client.search_registered_models()
    assert not store.client.search_logged_models([store.experiment_id])


def test_mlflows_refusal_is_one_sentence(store: Store) -> None:
    with pytest.raises(ValueError, match=r"The model could not be registered: .*not found"):
        register(
            store,
            "cats",
            bundle=make_bundle(store.root),
            report=Report({"kid": 1.0, "copied_fraction": 0.0, "copied_fraction_low": 0.0}, "key"),
            run_id="0" * 32,
            tags={},
            rule=RULE,
        )


def test_a_bundle_comes_back_whole_and_is_read_in_place(store: Store) -> None:
    add(store, 1.0)
    folder = registered_folder("models:/cats/1", store.root)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "clip", "lineage.json", "unet", "vae"]
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    assert "| kid | 0.25 |" in (folder / "README.md").read_text()
    assert json.loads((folder / "lineage.json").read_text()) == {"git.commit": "c0ffee"}
    assert folder.is_relative_to(store.root / "mlartifacts")


def test_parts_that_dvc_keeps_as_links_or_on_another_disk_are_bundled_as_files(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    make_bundle(store.root)
    weights = store.root / "data" / "vae" / "model.safetensors"
    weights.rename(store.root / "cached")
    weights.symlink_to(store.root / "cached")
    linked = make_bundle_of(store.root, "linked") / "vae" / "model.safetensors"
    assert not linked.is_symlink()
    assert linked.samefile(store.root / "cached")

    def refuse(*_: object) -> None:
        raise OSError("Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    assert (make_bundle_of(store.root, "copied") / "vae" / "model.safetensors").read_bytes() == b"weights"


def test_what_is_not_registered_is_explained(store: Store, tmp_path_factory: pytest.TempPathFactory) -> None:
    add(store, 1.0)
    with pytest.raises(ValueError, match="'models:/cats' is not the URI of a registered model; write models:/NAME@champion"):
        registered_folder("models:/cats", store.root)
    with pytest.raises(ValueError, match=r"`cats` has no alias 'champ'. Aliases: champion = version 1"):
        registered_folder("models:/cats@champ", store.root)
    with pytest.raises(ValueError, match="models:/dogs@champion cannot be found"):
        registered_folder("models:/dogs@champion", store.root)
    with pytest.raises(ValueError, match=r"mlflow.db not found in .*; run this in the project's folder"):
        open_registry(tmp_path_factory.mktemp("elsewhere"))


def test_an_unreachable_registry_is_one_sentence(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ValueError, match="MLflow cannot be reached"):
        open_registry(store.root)


def test_a_registered_model_has_no_pickle_and_no_path_of_this_machine(store: Store) -> None:
    add(store, 1.0)
    folder = registered_folder("models:/cats/1", store.root).parents[1]
    assert not list(folder.rglob("*.pkl"))
    text = (folder / "MLmodel").read_text()
    assert str(store.root) not in text
    assert str(REPOSITORY) not in text


@pytest.fixture
def drawing(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """The `sample` of a model that draws flat images in the colour of the seed."""
    from darkroom.sampling import text_to_image

    def load(folder: Path, device: torch.device | None = None) -> Mock:
        assert (folder / "unet" / "model.safetensors").is_file()
        return model

    def sample(prompts: Sequence[str], *, seeds: Sequence[int], **options: Any) -> np.ndarray:
        return np.stack([np.full((4, 4, 3), seed, np.uint8) for seed in seeds])

    model = create_autospec(text_to_image.TextToImage, instance=True)
    model.sample.side_effect = sample
    monkeypatch.setattr(text_to_image.TextToImage, "load", create_autospec(text_to_image.TextToImage.load, side_effect=load))
    return cast(Mock, model.sample)


@pytest.fixture
def served(store: Store, drawing: Mock, monkeypatch: pytest.MonkeyPatch) -> Any:
    from mlflow import pyfunc

    monkeypatch.setattr(sys, "path", list(sys.path))  # MLflow puts the model's own code in front
    add(store, 1.0)
    return pyfunc.load_model(str(registered_folder("models:/cats@champion", store.root).parents[1]))


def test_the_signature_has_the_served_options_with_the_defaults_of_the_model(served: Any) -> None:
    found = [(param.name, param.dtype.name, param.default) for param in served.metadata.signature.params]
    assert found == [
        ("seed", "long", 0),
        ("steps", "long", 7),
        ("sampler", "string", "euler"),
        ("spacing", "string", "karras"),
        ("guidance_scale", "double", 2.5),
        ("guidance_rescale", "double", 0.0),
        ("negative_prompt", "string", ""),
    ]


def test_the_served_model_draws_from_prompts_with_the_models_own_defaults(served: Any, drawing: Mock) -> None:
    answer = served.predict([{"prompt": "a black cat"}, {"prompt": "a white cat"}])
    defaults = {"steps": 7, "sampler": "euler", "spacing": "karras", "guidance_scale": 2.5, "guidance_rescale": 0.0}
    drawing.assert_called_once_with(["a black cat", "a white cat"], seeds=[0, 1], negative_prompt="", **defaults)
    assert list(answer["prompt"]) == ["a black cat", "a white cat"]
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["png"][1]))))
    assert np.array_equal(image, np.full((4, 4, 3), 1, np.uint8))


def test_the_served_model_takes_the_parameters_of_its_signature(served: Any, drawing: Mock) -> None:
    settings = {"steps": 3, "sampler": "heun", "spacing": "leading", "guidance_scale": 1.0, "guidance_rescale": 0.5}
    answer = served.predict([{"prompt": "a"}, {"prompt": "b"}], params={"seed": 40, "negative_prompt": "dog"} | settings)
    assert list(answer["seed"]) == [40, 41]
    drawing.assert_called_once_with(["a", "b"], seeds=[40, 41], negative_prompt="dog", **settings)


def test_the_served_model_refuses_a_table_without_prompts(served: Any) -> None:
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match="prompt"):
        served.predict([{"text": "a"}])


def test_the_registry_does_not_load_torch() -> None:
    script = "import sys, darkroom.tracking.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, check=False).returncode == 0


def test_the_model_asks_for_every_package_that_drawing_imports() -> None:
    imported = {name.split(".")[0] for module in closure({"darkroom.sampling.text_to_image"}) for name in imports_of(TREES[module])}
    owners = packages_distributions()
    owners |= {"ruamel": ["ruamel.yaml"], "mlflow": ["mlflow"]}  # shared by several distributions
    needed = {_plain(owners[name][0]) for name in imported - set(sys.stdlib_module_names) - {"darkroom", "stages", "flows"}}
    assert needed <= {_plain(name) for name in REQUIREMENTS}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
