"""`darkroom tune`: one command carries a whole model over into params.yaml, and the run starts where the model ended."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from darkroom.cli import main
from darkroom.demo.toy_cats import draw_toy_cats
from darkroom.interchange.exchange import import_model
from darkroom.models.tiny_autoencoder import TinyAutoencoder, TinyAutoencoderConfig
from darkroom.models.weights import save_model
from darkroom.params_file import merged, read_yaml
from darkroom.provenance import read_index
from darkroom.sampling import PARTS
from darkroom.tracking import registry
from darkroom.tracking.bundle import build_bundle
from tests.cli.test_main import fails
from tests.interchange.own_model import write_model
from tests.interchange.pipelines import SIDE, make_pipeline
from tests.tiny_run import make_project, run_stage, write_params

MADE = ("ingest", "train_clip", "train_vae", "cache_latents", "train_unet")
OTHER: dict[str, dict[str, Any]] = {  # what a model may have of its own
    "train_clip": {"pad_token": "end"},
    "train_vae": {"likelihood": "laplace", "decoder_scale": 0.25},
    "train_unet": {
        "schedule": {"kind": "linear", "num_train_timesteps": 200, "beta_start": 1e-3, "beta_end": 0.1},
        "prediction": "epsilon",
        "sampling": {"sampler": "euler", "spacing": "leading", "steps": 3, "guidance_scale": 1.5},
        "steps": 100,
        "lr": 1e-2,
        "ema_decay": 0.0,
    },
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project with a model in data/."""
    root = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DARKROOM_TRACKING", "off")
        make_project(root, **OTHER)
        for name in MADE:
            run_stage(name, root)
        yield root


@pytest.fixture
def project(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it in which params.yaml has been set to other values since."""
    monkeypatch.setenv("DARKROOM_TRACKING", "off")
    shutil.copytree(trained, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    write_params(Path("params.yaml"), ingest={"side": 32})
    return tmp_path / "project"


def read_loss(project: Path) -> float:
    loss: float = json.loads((project / "data" / "unet" / "metrics.json").read_text())["loss"]
    return loss


def test_a_run_starts_at_the_loss_where_the_model_ended(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = read_loss(project)
    main(["tune", "--from", "data"])
    assert "train_unet.init:" in capsys.readouterr().out
    tuned = read_yaml(project / "params.yaml")

    def run(**changes: Any) -> float:
        write_params(project / "params.yaml", **merged(tuned, {"train_unet": {"steps": 1, "lr": 1e-9, "ema_decay": 0.0, **changes}}))
        for name in MADE:
            run_stage(name, project)
        return read_loss(project)

    assert run() == pytest.approx(old, rel=1e-3)  # the same photos; the learning rate is almost 0
    shutil.rmtree(project / "data" / "raw")
    draw_toy_cats(project / "data" / "raw", num_cats=24, size=16, seed=1)
    assert run() == pytest.approx(old, rel=0.2)
    assert run(init="") > 1.5 * old


def test_what_is_set_is_printed_and_everything_else_stays(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = read_yaml(project / "params.yaml")
    main(["tune", "--from", "data"])
    printed = capsys.readouterr().out.splitlines()
    copy = f"models/data-{read_index(Path('data/unet'))['fingerprint'][:8]}"
    sampling = OTHER["train_unet"]["sampling"]
    changes = {
        "ingest": {"side": 16},
        "train_clip": {"mode": "pretrained", "pretrained": f"{copy}/clip"},
        "train_vae": {"init": f"{copy}/vae", "steps": 0} | OTHER["train_vae"],
        "train_unet": {"init": f"{copy}/unet", "schedule": OTHER["train_unet"]["schedule"], "prediction": "epsilon", "sampling": sampling},
        "evaluate": {"sampling": {"spacing": "leading", "guidance_scale": 1.5}},
    }
    assert read_yaml(project / "params.yaml") == merged(before, changes)
    assert "ingest.side: 32 -> 16" in printed
    assert "train_clip.mode: scratch -> pretrained" in printed
    assert printed[-1].startswith(f"`dvc repro` starts from {copy} now, with train_unet.steps 4 and train_unet.lr 0.001.")
    assert len(printed) == 19 + 1
    for part in ("clip", "vae", "unet"):
        assert read_index(Path(copy) / part) == read_index(Path("data") / part)
    main(["tune", "--from", "data"])
    assert capsys.readouterr().out.startswith("params.yaml is up to date.\n")


def test_a_run_of_subject_crops_and_a_linear_autoencoder_goes_on_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_TRACKING", "off")
    monkeypatch.chdir(tmp_path)
    ingest = {"captions": [], "crop": "subject", "subject": ["ocarina", "clog"], "caption_template": "{subject:cat} {stem}"}
    vae = {"kind": "linear", "steps": 0, "linear": {"patch_size": 4, "latent_channels": 12}}
    make_project(tmp_path, ingest=ingest, train_vae=vae, train_unet=OTHER["train_unet"], cache_latents={"gate": {"min_psnr": 5.0}})
    for name in MADE:
        run_stage(name, tmp_path)
    old, scale = read_loss(tmp_path), json.loads(Path("data/vae/likelihood.json").read_text())["scale"]
    write_params(Path("params.yaml"), ingest={"captions": []}, cache_latents={"gate": {"min_psnr": 60.0}})
    main(["tune", "--from", "data"])
    tuned = read_yaml(Path("params.yaml"))
    assert tuned["ingest"] | {"crop": "subject", "subject": [684, 502], "caption_template": "{subject:cat} {stem}"} == tuned["ingest"]
    vae = {"kind": "pretrained", "init": f"{Path(*Path(tuned['train_unet']['init']).parts[:2])}/vae", "steps": 0, "decoder_scale": scale}
    assert tuned["train_vae"] | vae == tuned["train_vae"]
    assert tuned["cache_latents"]["gate"]["min_psnr"] == 5.0  # which the model has passed

    def run(**changes: Any) -> float:
        write_params(Path("params.yaml"), **merged(tuned, {"train_unet": {"steps": 1, "lr": 1e-9, "ema_decay": 0.0, **changes}}))
        for name in MADE:
            run_stage(name, tmp_path)
        return read_loss(tmp_path)

    assert run() == pytest.approx(old, rel=1e-3)
    shutil.rmtree("data/raw")
    draw_toy_cats(Path("data/raw"), num_cats=24, size=16, seed=1)
    assert run() == pytest.approx(old, rel=0.2)
    assert run(init="") > 1.5 * old


def test_the_kind_of_the_autoencoder_goes_back_to_that_of_the_model(project: Path) -> None:
    write_params(Path("params.yaml"), train_vae={"kind": "linear", "steps": 0})
    main(["tune", "--from", "data"])
    assert read_yaml(Path("params.yaml"))["train_vae"]["kind"] == "kl"
    write_model(project / "mine")
    shutil.rmtree(project / "mine" / "vae")
    widths = {"encoder_block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 8, 8)}
    tiny = TinyAutoencoderConfig(num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1), **widths)
    save_model(TinyAutoencoder(tiny), project / "mine" / "vae")
    main(["tune", "--from", "mine"])
    tuned = read_yaml(Path("params.yaml"))
    assert (tuned["train_vae"]["kind"], tuned["train_vae"]["init"], tuned["train_vae"]["steps"]) == ("pretrained", "mine/vae", 0)
    assert tuned["ingest"]["side"] == SIDE * tiny.stride


def test_crops_go_back_to_those_of_the_model_and_captions_do_without_the_subject(project: Path) -> None:
    write_params(Path("params.yaml"), ingest={"crop": "subject", "subject": [281], "caption_template": "a {subject:cat} by {stem}"})
    main(["tune", "--from", "data"])
    ingest = read_yaml(Path("params.yaml"))["ingest"]
    assert (ingest["crop"], ingest["subject"], ingest["caption_template"]) == ("centre", [], "a cat by {stem}")


def test_a_model_that_does_not_know_its_crops_changes_none(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(project / "mine")
    write_params(Path("params.yaml"), ingest={"crop": "subject"})
    main(["tune", "--from", "mine"])
    assert read_yaml(Path("params.yaml"))["ingest"]["crop"] == "subject"
    assert "mine does not say how its photos were cropped; ingest.crop stays subject.\n" in capsys.readouterr().out


def test_the_hash_of_another_autoencoder_is_forgotten(project: Path) -> None:
    write_params(Path("params.yaml"), train_vae={"init": "other/vae", "init_sha256": "0" * 64})
    main(["tune", "--from", "data"])
    assert read_yaml(Path("params.yaml"))["train_vae"]["init_sha256"] == ""


def test_choices_for_the_text_encoder_go_back_to_those_of_the_model(project: Path) -> None:
    write_params(Path("params.yaml"), train_clip={"text_layer": "penultimate", "pad_token": "zero"})
    main(["tune", "--from", "data"])
    clip = read_yaml(Path("params.yaml"))["train_clip"]
    assert (clip["text_layer"], clip["pad_token"]) == ("source", "source")


def test_a_folder_of_ones_own_is_used_where_it_is(project: Path) -> None:
    write_model(project / "mine")
    for source in ("mine", str(project / "mine")):
        main(["tune", "--from", source])
        assert read_yaml(Path("params.yaml"))["train_unet"]["init"] == f"{source}/unet"
    assert not Path("models").exists()


def test_a_params_file_elsewhere_names_the_model_as_seen_from_there(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(project / "mine")
    monkeypatch.chdir(project.parent)
    main(["tune", "--from", "project/mine", "--params", "project/params.yaml"])
    assert read_yaml(project / "params.yaml")["train_vae"]["init"] == "mine/vae"
    main(["tune", "--from", "project/data", "--params", "project/params.yaml"])
    assert (project / read_yaml(project / "params.yaml")["train_vae"]["init"] / "config.json").is_file()


def test_a_registered_version_is_copied_and_named_by_its_number(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("registry").mkdir()
    build_bundle(Path("registry"), name="cats", parts={part: Path("data") / part for part in PARTS}, lineage={}, metrics={})
    write_params(Path("params.yaml"), ingest={"crop": "subject"})

    def version(uri: str, start: Path) -> tuple[str, Path]:
        assert (uri, start) == ("models:/cats@champion", Path())
        return "models:/cats/3", project / "registry"

    monkeypatch.setattr(registry, "registered_version", version)
    main(["tune", "--from", "models:/cats@champion"])
    assert read_yaml(Path("params.yaml"))["train_clip"]["pretrained"] == "models/cats-v3/clip"
    assert read_yaml(Path("params.yaml"))["ingest"]["crop"] == "centre"
    assert sorted(path.name for path in Path("models/cats-v3").iterdir()) == ["clip", "unet", "vae"]


def test_an_imported_model_has_neither_features_nor_a_likelihood(project: Path) -> None:
    pipeline: Any = make_pipeline("sd1", "epsilon")
    pipeline.save_pretrained("source")
    import_model("source", Path("imported"))
    before = read_yaml(Path("params.yaml"))
    main(["tune", "--from", "imported"])
    after = read_yaml(Path("params.yaml"))
    assert after["cache_latents"]["gate"]["max_frechet"] is None
    assert after["train_vae"]["likelihood"] == before["train_vae"]["likelihood"]
    made_with = read_index(Path("imported/unet"))["content"]["made_with"]
    assert made_with == {part: read_index(Path("imported") / part)["content"]["weights"] for part in ("clip", "vae")}


def test_a_copy_that_is_something_else_is_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["tune", "--from", "data"])
    (copy,) = Path("models").iterdir()
    index = copy / "unet" / "index.json"
    index.write_text(index.read_text().replace('"fingerprint": "', '"fingerprint": "0'))
    before = Path("params.yaml").read_text()
    assert f"{copy} exists and is not a copy of data. Move it away" in fails(capsys, "tune", "--from", "data")
    shutil.rmtree(copy / "vae")
    assert "is not a copy of data" in fails(capsys, "tune", "--from", "data")
    assert Path("params.yaml").read_text() == before


def test_what_is_no_whole_model_is_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = Path("params.yaml").read_text()
    assert "nowhere/clip/ not found: a model is a folder with clip/, vae/ and unet/" in fails(capsys, "tune", "--from", "nowhere")
    shutil.copytree("data", "model")
    config = Path("model/unet/config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"sample_size": None}))
    Path("model/unet/index.json").unlink()
    assert "unet/config.json: `sample_size` is missing" in fails(capsys, "tune", "--from", "model")
    shutil.rmtree("data/unet")
    assert "data/unet/index.json not found" in fails(capsys, "tune", "--from", "data")
    assert Path("params.yaml").read_text() == before
