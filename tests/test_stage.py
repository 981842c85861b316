import errno
import json
import sys
from pathlib import Path

import pytest

import darkroom.stage
from darkroom.provenance import hash_json, read_index
from darkroom.source_code import code_identity
from darkroom.stage import Contract, Stage
from tests.tiny_run import write_params


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs a stage named `ingest` that reads the user's photos and writes `shards`, as its command would."""
    monkeypatch.setenv("DARKROOM_TRACKING", "off")
    write_params(tmp_path / "params.yaml")
    (tmp_path / "data" / "raw").mkdir(parents=True)
    monkeypatch.setattr(sys, "argv", ["ingest", "--params", str(tmp_path / "params.yaml"), "--data", str(tmp_path / "data")])

    def start(run) -> None:
        Contract("ingest", run, reads=("raw",), writes=("shards", "note.json")).main()

    return start


def write_outputs(stage: Stage) -> None:
    (stage.outs["shards"] / "train.tar").write_bytes(b"photos")
    stage.outs["note.json"].write_text("{}")
    stage.content["shards"] = {"num_images": 1}


def leftovers(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "data").iterdir() if path.name != "raw")


def test_a_stage_publishes_its_outputs_with_what_made_them(command, tmp_path):
    command(write_outputs)
    index = read_index(tmp_path / "data" / "shards")
    assert index["stage"] == "ingest"
    assert index["params"]["side"] == 16
    assert index["content"] == {"num_images": 1}
    assert list(index["files"]) == ["train.tar"]
    assert leftovers(tmp_path) == ["note.json", "runs", "shards"]
    assert isinstance(json.loads((tmp_path / "data" / "runs" / "ingest.json").read_text()), dict)


def test_a_users_mistake_is_one_paragraph_and_leaves_nothing(command, tmp_path):
    def fail(stage: Stage) -> None:
        write_outputs(stage)
        raise ValueError("data/raw holds no picture. Put photos there.")

    with pytest.raises(SystemExit) as stopped:
        command(fail)
    assert stopped.value.code == "ingest: data/raw holds no picture. Put photos there."
    assert leftovers(tmp_path) in ([], ["runs"])


def test_a_misspelt_parameter_stops_before_any_work(command, tmp_path):
    params = tmp_path / "params.yaml"
    params.write_text(params.read_text().replace("caption_dropout", "caption_droput"))
    with pytest.raises(SystemExit) as stopped:
        command(lambda stage: pytest.fail("the stage must not run"))
    assert "`train_unet.caption_droput` is not a parameter; did you mean `train_unet.caption_dropout`?" in str(stopped.value.code)


def test_a_full_disk_is_said_plainly_and_leaves_nothing(command, tmp_path):
    def fill(stage: Stage) -> None:
        write_outputs(stage)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(SystemExit, match=r"is full .* MiB free"):
        command(fill)
    assert leftovers(tmp_path) in ([], ["runs"])


def test_our_own_mistakes_keep_their_traceback(command, tmp_path):
    def fail(stage: Stage) -> None:
        raise KeyError("oops")

    with pytest.raises(KeyError, match="oops"):
        command(fail)
    assert leftovers(tmp_path) in ([], ["runs"])


def test_a_failed_repetition_keeps_the_last_good_output(command, tmp_path):
    command(write_outputs)
    before = read_index(tmp_path / "data" / "shards")

    def fail(stage: Stage) -> None:
        raise ValueError("no")

    with pytest.raises(SystemExit):
        command(fail)
    assert read_index(tmp_path / "data" / "shards") == before


def test_a_killed_run_does_not_go_on_under_other_code_parameters_or_inputs(command, tmp_path, monkeypatch):
    """The folder of the checkpoints is another one."""
    folders: list[Path] = []

    def look(stage: Stage) -> None:
        folders.append(stage.scratch)
        write_outputs(stage)

    command(look)
    command(look)
    monkeypatch.setattr(darkroom.stage, "code_identity", lambda name: {f"stages.{name}:run": "another"})
    command(look)
    write_params(tmp_path / "params.yaml", ingest={"side": 32})
    command(look)
    assert folders[0] == folders[1]
    assert len(set(folders)) == 3


def test_the_record_of_a_run_names_the_code_and_the_index_does_not(command, tmp_path):
    command(write_outputs)
    record = json.loads((tmp_path / "data" / "runs" / "ingest.json").read_text())
    assert record["code"] == hash_json(code_identity("ingest"))
    assert "code" not in read_index(tmp_path / "data" / "shards")
