import sys

from darkroom.training.launch import command


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
