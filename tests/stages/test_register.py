"""The stage as DVC runs it, on stand-in models and a real MLflow store."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from darkroom.provenance import read_index, write_index, write_json
from darkroom.stage import RAW
from darkroom.tracking.registry import registered_folder
from darkroom.tracking.store import open_store
from stages import register
from tests.tiny_run import STAGES

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database: Path) -> Path:
    """A project whose models are stand-ins; no stage but `register` has anything to do."""
    for name in ("MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "DVC_ROOT", "DARKROOM_TRACKING"):
        monkeypatch.delenv(name, raising=False)
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    shutil.copy(database, tmp_path)
    data = tmp_path / "data"
    indexes: dict[str, Any] = {}
    for name, contract in STAGES.items():
        for out in contract.writes if name != "register" else ():
            folder = data / out
            folder.mkdir(parents=True)
            (folder / "model.safetensors").write_text(out)
            if out == "unet":
                write_json(folder / "diffusion.json", {"steps": 7, "sampler": "euler", "guidance_scale": 2.0})
            if out == "report":
                copied = {"copied_fraction": 0.1, "copied_fraction_low": 0.0}
                metrics = {"kid": 0.5, "kid_standard_error": 0.01, **copied, "eval_key": "e" * 16, "unfit_because": ""}
                write_json(folder / "metrics.json", metrics)
            inputs = {item: indexes[item] for item in contract.reads if item != RAW}
            write_index(folder, stage=name, params={}, inputs=inputs, content={})
            indexes[out] = read_index(folder)
    (data / "runs").mkdir()
    write_json(data / "runs" / "train_unet.json", {"experiment": "darkroom", "parent_run_id": "p1", "run_id": "r1"})
    write_json(data / "runs" / "train_vae.json", {"experiment": None, "parent_run_id": None, "run_id": None})
    outs = "outs: [{path: data/shards, md5: s1.dir}, {path: data/unet, md5: u1.dir}]"
    (tmp_path / "dvc.lock").write_text(f"schema: '2.0'\nstages:\n  a:\n    deps: [{{path: data/raw, md5: r1.dir}}]\n    {outs}\n")
    return tmp_path


def run_stage(toy: Path) -> dict[str, Any]:
    register.STAGE.execute(params_file=toy / "params.yaml", data=toy / "data")
    return dict(json.loads((toy / "data" / "registered.json").read_text()))


def test_the_decision_is_recorded_and_the_version_knows_where_it_comes_from(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = run_stage(toy)
    assert record["version"] == 1
    assert record["decision"] == "champion"
    assert record["champion"] == {"before": None, "after": 1}
    assert "Version 1 of `darkroom` is now champion: it is the first champion." in capsys.readouterr().out
    version = open_store(toy).client.get_model_version("darkroom", "1")
    expected = {
        **{f"dvc.dep.{name}": read_index(toy / "data" / name)["fingerprint"] for name in ("unet", "shards", "latents")},
        "dvc.md5.raw": "r1.dir",
        "dvc.md5.shards": "s1.dir",
        "dvc.md5.unet": "u1.dir",
        "run.train_unet": "r1",
        "eval_key": "e" * 16,
    }
    assert expected.items() <= version.tags.items()
    assert "run.train_vae" not in version.tags  # it was made without MLflow
    assert version.run_id == json.loads((toy / "data" / "runs" / "register.json").read_text())["run_id"]


def test_the_registered_bundle_holds_what_the_folders_hold(toy: Path) -> None:
    run_stage(toy)
    bundle = registered_folder("models:/darkroom@champion", toy)
    for part in ("clip", "vae", "unet"):
        assert read_index(bundle / part) == read_index(toy / "data" / part)
        assert (bundle / part / "model.safetensors").read_text() == part
    assert json.loads((bundle / "lineage.json").read_text())["run.train_unet"] == "r1"


def test_registering_the_same_twice_makes_a_second_version_that_is_no_better(toy: Path) -> None:
    run_stage(toy)
    record = run_stage(toy)
    assert record["version"] == 2
    assert record["decision"] == "challenger"
    assert record["champion"] == {"before": 1, "after": 1}


def test_what_an_interrupted_run_left_in_scratch_does_not_matter(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(register, "open_store", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_stage(toy)
    assert list((toy / ".scratch").rglob("lineage.json"))
    assert not (toy / "data" / "registered.json").exists()
    assert run_stage(toy)["version"] == 1


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_with_tracking_off_the_record_says_that_nothing_was_registered(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DARKROOM_TRACKING", "off")
    (toy / "mlflow.db").unlink()
    record = run_stage(toy)
    assert record["decision"] == "not registered"
    assert record["version"] is None
    assert "Nothing was registered: DARKROOM_TRACKING=off." in capsys.readouterr().out
    assert not (toy / "mlflow.db").exists()


def test_without_mlflow_it_fails_and_says_what_to_do(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ValueError, match=r"The model cannot be registered, because MLflow is not available .* Check MLFLOW_TRACKING_URI"):
        run_stage(toy)
    assert not (toy / "data" / "registered.json").exists()


def test_a_metric_that_the_report_lacks_is_an_error_and_leaves_nothing(toy: Path) -> None:
    text = (toy / "params.yaml").read_text()
    before, after = text.split("register:")
    (toy / "params.yaml").write_text(f"{before}register:{after.replace('metric: kid', 'metric: fid', 1)}")
    with pytest.raises(ValueError, match="Metric `fid` is missing"):
        run_stage(toy)
    assert not (toy / "data" / "registered.json").exists()


@pytest.mark.slow
def test_a_server_keeps_a_model_that_another_program_can_load_and_draw_with(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over HTTP, then by MLflow alone in a folder without our code, with real (untrained) networks."""
    make_real_models(toy / "data")
    port = free_port()
    storage = ["--backend-store-uri", f"sqlite:///{toy / 'server.db'}", "--artifacts-destination", str(toy / "server")]
    command = [sys.executable, "-m", "mlflow", "server", *storage, "--port", str(port), "--workers", "1"]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(f"http://127.0.0.1:{port}/health")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        (toy / "mlflow.db").unlink()
        assert run_stage(toy)["decision"] == "champion"
        assert not (toy / "mlflow.db").exists()
        copy = registered_folder("models:/darkroom@champion", toy)
        assert copy.is_relative_to(toy / ".scratch" / "registry")
        assert (copy / "unet" / "diffusion.json").is_file()
        (copy / "unet" / "mark").touch()
        assert (registered_folder("models:/darkroom/1", toy) / "unet" / "mark").exists()  # fetched once
        code = """
import base64, mlflow
model = mlflow.pyfunc.load_model("models:/darkroom@champion")
answer = model.predict([{"prompt": "a cat"}, {"prompt": "a dog"}], params={"steps": 2})
assert base64.b64decode(answer["png"][1]).startswith(b"\\x89PNG")
import darkroom
print(darkroom.__file__)  # the code that travels with the model, not the one of the project
"""
        elsewhere = toy / "elsewhere"
        elsewhere.mkdir()
        done = subprocess.run([sys.executable, "-c", code], cwd=elsewhere, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert not done.stdout.startswith(str(REPOSITORY))
    finally:
        os.killpg(server.pid, 9)
        server.wait()


def make_real_models(data: Path) -> None:
    from darkroom.diffusion.diffusion_config import DiffusionConfig
    from darkroom.diffusion.schedule import Schedule
    from darkroom.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
    from darkroom.models.clip import ClipTowers
    from darkroom.models.unet import UNet2DConditionModel, UNetConfig
    from darkroom.models.weights import save_model

    sizes = {"embed_dim": 8, "image_size": 16, "patch_size": 8, "vision_width": 64, "vision_layers": 1}
    clip = ClipTowers.build({**sizes, "text_width": 64, "text_layers": 1, "context_length": 8}, seed=0)
    levels = {"block_out_channels": [8, 8], "attention": [True, True], "layers_per_block": 1, "channels_per_head": 8, "norm_num_groups": 4}
    unet = UNet2DConditionModel(UNetConfig.from_levels(**levels, latent_channels=4, latent_size=8, context_dim=64))
    vae = AutoencoderKL(AutoencoderKLConfig(block_out_channels=(8, 8), norm_num_groups=4, sample_size=16))
    folders = {name: data / name for name in ("clip", "vae", "unet")}
    for folder in folders.values():
        shutil.rmtree(folder)
        folder.mkdir()
    clip.save(folders["clip"])
    save_model(vae, folders["vae"])
    save_model(unet, folders["unet"])
    schedule = Schedule.make("cosine", 1000, 0.00085, 0.012)
    DiffusionConfig(schedule=schedule, prediction="v_prediction", sampler="euler", steps=4, guidance_scale=1.0).save(folders["unet"])
    for name, folder in folders.items():
        write_index(folder, stage=name, params={}, inputs={}, content={})
    write_index(data / "report", stage="evaluate", params={}, inputs={}, content={})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(url: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=2)
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise AssertionError(f"{url} does not answer")
