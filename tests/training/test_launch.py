import sys
from pathlib import Path
from typing import Any

import pytest

from darkroom.training.launch import command, main, place, processes_of
from tests.tiny_run import write_params


def test_one_process_is_the_stage_itself():
    assert command("stages.train_vae", ["--data", "d"], num_processes=1, config_file=None) == [
        sys.executable,
        "-m",
        "stages.train_vae",
        "--data",
        "d",
    ]


def test_many_processes_go_through_accelerate():
    line = command("stages.train_vae", [], num_processes=4, config_file=None)
    assert line[1:3] == ["-m", "accelerate.commands.launch"]
    assert line[line.index("--num_processes") + 1] == "4"
    assert line[-2:] == ["--module", "stages.train_vae"]


def test_a_config_file_describes_the_machines():
    line = command("stages.train_unet", [], num_processes=16, config_file="two-nodes.yaml")
    assert line[line.index("--config_file") + 1] == "two-nodes.yaml"
    assert "--multi_gpu" not in line


def test_a_stage_knows_its_place_among_its_processes(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert place("evaluate", 1) == (0, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert place("evaluate", 3) == (2, 3)


def test_another_number_of_processes_than_asked_for_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(ValueError, match=r"evaluate\.num_processes is 2, but 1 run\. .*launch stages\.evaluate"):
        place("evaluate", 2)


def test_the_number_of_processes_is_that_of_the_parameters(tmp_path: Path) -> None:
    write_params(tmp_path / "other.yaml", train_unet={"num_processes": 2})
    assert processes_of("train_unet", ["--data", "d", "--params", str(tmp_path / "other.yaml")]) == 2
    with pytest.raises(ValueError, match="ingest has no parameter num_processes: start it without the launcher"):
        processes_of("ingest", ["--params", str(tmp_path / "other.yaml")])


def test_the_parameters_alone_say_how_many_processes_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[Any] = []
    monkeypatch.setattr("darkroom.training.launch.os.execv", lambda _, line: started.append(line))
    monkeypatch.delenv("ACCELERATE_CONFIG_FILE", raising=False)
    write_params(tmp_path / "params.yaml", train_unet={"num_processes": 2})
    arguments = ["--params", str(tmp_path / "params.yaml")]
    monkeypatch.setattr(sys, "argv", ["launch", "stages.train_unet", *arguments])
    main()
    assert started == [command("stages.train_unet", arguments, num_processes=2, config_file=None)]
    monkeypatch.setattr(sys, "argv", ["launch", "--num_processes", "3", "stages.train_unet", *arguments])
    with pytest.raises(SystemExit):
        main()
    assert "unrecognized arguments: --num_processes" in capsys.readouterr().err
    assert len(started) == 1
