"""Where `train_vae.init` finds an autoencoder, the hub among others, and the hash that it must have."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from darkroom import open_model
from darkroom.models.autoencoder import Autoencoder, load_autoencoder
from darkroom.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from darkroom.models.linear_autoencoder import LinearAutoencoder, LinearAutoencoderConfig
from darkroom.models.weights import save_model
from darkroom.provenance import read_index
from tests.loopback_hub import LoopbackHub, serve
from tests.models.test_tiny_autoencoder import SMALL, as_taesd, ours
from tests.tiny_run import make_project, run_stage, write_params

ID = "someone/a-model"


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ingested")
    make_project(root)
    run_stage("ingest", root)
    return root


@pytest.fixture
def project(ingested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with shards, and an autoencoder of each kind in models/, the model of the registry."""
    monkeypatch.setenv("DARKROOM_TRACKING", "off")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ingested / "data", "data")
    kl = AutoencoderKL(AutoencoderKLConfig(block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, scaling_factor=0.5))
    kl.initialise(0)
    save_model(kl, Path("models/vae"))
    save_model(ours(**SMALL), Path("models/tiny"))
    linear = LinearAutoencoder(LinearAutoencoderConfig(sample_size=16, patch_size=4, latent_channels=12))
    save_model(linear, Path("models/linear"))
    Path("models/files").mkdir()
    as_taesd(ours(**SMALL), Path("models/files/small"))
    monkeypatch.setattr(open_model, "registered_version", lambda _: ("models:/cats/3", tmp_path / "models"))
    return tmp_path


def train_vae(root: Path, **params: Any) -> tuple[Autoencoder, dict[str, Any]]:
    """What the stage writes with a pretrained autoencoder: the autoencoder, and the content of the index."""
    write_params(root / "params.yaml", train_vae={"kind": "pretrained", "steps": 0} | params)
    run_stage("train_vae", root)
    return load_autoencoder(root / "data" / "vae"), read_index(root / "data" / "vae")["content"]


@pytest.mark.parametrize("kind", ["vae", "tiny", "linear", "files"])
def test_an_autoencoder_on_the_hub_is_the_one_of_the_same_folder_here(
    kind: str, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, content = train_vae(project, init=f"models/{kind}")
    assert content["version"] == ""
    with serve(tmp_path, monkeypatch) as hub:
        commit = hub.add(ID, Path("models") / kind, folder="part")
        fetched, found = train_vae(project, init=f"hf-hub:{ID}/part")
    assert type(fetched) is type(here)
    assert fetched.fingerprint() == here.fingerprint()
    assert found == content | {"version": f"hf-hub:{ID}/part@{commit}"}


def test_a_network_of_the_hub_can_be_trained_on(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(tmp_path, monkeypatch) as hub:
        hub.add(ID, Path("models/vae"))
        _, content = train_vae(project, kind="kl", init=f"hf-hub:{ID}", steps=1)
    assert content["init"] == load_autoencoder("models/vae").fingerprint() != content["weights"]


@pytest.mark.parametrize("init", ["models/vae", "models/files", f"hf-hub:{ID}/vae", "models:/cats@champion"])
def test_an_autoencoder_of_another_hash_is_refused(init: str, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = load_autoencoder("models/files" if "files" in init else "models/vae").fingerprint()
    with serve(tmp_path, monkeypatch) as hub:
        hub.add(ID, Path("models/vae"), folder="vae")
        message = rf"`train_vae\.init` \({init}\) has the hash {wanted}, but `train_vae\.init_sha256` is {'0' * 64}: its"
        with pytest.raises(ValueError, match=rf"{message} .* set train_vae\.init_sha256: {wanted}$"):
            train_vae(project, init=init, init_sha256="0" * 64)
        assert not Path("data/vae").exists()
        _, content = train_vae(project, init=init, init_sha256=wanted)
    assert content["init"] == wanted


def test_a_branch_that_has_moved_to_other_weights_is_refused(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(tmp_path, monkeypatch) as hub:
        first = publish(hub, seed=0)
        _, content = train_vae(project, init=f"hf-hub:{ID}")
        publish(hub, seed=1)
        with pytest.raises(ValueError, match=r"but `train_vae\.init_sha256` is"):
            train_vae(project, init=f"hf-hub:{ID}", init_sha256=content["init"])
        train_vae(project, init=f"hf-hub:{ID}@{first}", init_sha256=content["init"])


def publish(hub: LoopbackHub, *, seed: int) -> str:
    vae = AutoencoderKL(AutoencoderKLConfig(block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1))
    vae.initialise(seed)
    save_model(vae, Path("mine"))
    return hub.add(ID, Path("mine"))
