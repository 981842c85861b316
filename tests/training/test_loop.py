import csv
import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from darkroom.tracking.tracker import NullTracker
from darkroom.training.launch import command
from darkroom.training.loop import Curves, Interrupted, train
from tests.training.line_task import LineTask, line_params


class StopsAtStep(LineTask):
    """Sends this process a signal while the batch of a step is made, as a scheduler would."""

    def __init__(self, step: int, number: int) -> None:
        super().__init__()
        self.step, self.number = step, number

    def batch(self, positions: range) -> dict[str, torch.Tensor]:
        if positions.start == self.step * 8:
            os.kill(os.getpid(), self.number)
        return super().batch(positions)


def fit(task: LineTask, scratch: Path, **changes: object) -> Curves:
    return train(task, line_params(**changes), name="line", scratch=scratch, tracker=NullTracker())


def weights(task: LineTask) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in task.net.parameters()])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_resumed_training_equals_uninterrupted(tmp_path, number):
    whole = LineTask()
    expected = fit(whole, tmp_path / "whole")
    with pytest.raises(Interrupted, match="Start it again to resume from there"):
        fit(StopsAtStep(7, number), tmp_path / "cut")
    resumed = LineTask()
    curves = fit(resumed, tmp_path / "cut")
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=0)
    assert curves == expected


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path):
    class Dies(LineTask):
        def batch(self, positions: range) -> dict[str, torch.Tensor]:
            if positions.start == 8 * 8:
                raise RuntimeError("power cut")
            return super().batch(positions)

    with pytest.raises(RuntimeError, match="power cut"):
        fit(Dies(), tmp_path / "cut")
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["step-00000006"]
    whole, resumed = LineTask(), LineTask()
    assert fit(resumed, tmp_path / "cut") == fit(whole, tmp_path / "whole")
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=0)


def test_a_damaged_checkpoint_is_passed_over(tmp_path, caplog):
    fit(LineTask(), tmp_path)
    (tmp_path / "step-00000012" / "net.safetensors").write_bytes(b"half")
    again = LineTask()
    fit(again, tmp_path)
    assert "is damaged" in caplog.text
    whole = LineTask()
    fit(whole, tmp_path / "whole")
    torch.testing.assert_close(weights(again), weights(whole), rtol=0, atol=0)


class Counts(LineTask):
    """Logs what it counts: errors above a limit, at every third step only."""

    def loss(self, net, batch):
        loss, logs = super().loss(net, batch)
        step = int(batch.get("step", 0))
        counted = 4.0 if step % 3 == 0 else 0.0
        return loss, {**logs, "counted": torch.tensor([2.0 * step * counted, counted])}

    def batch(self, positions):
        return {**super().batch(positions), "step": torch.tensor(positions.start // 8)}


def test_a_sum_and_a_count_become_their_ratio_over_all_steps_since_the_last_row(tmp_path):
    curves = fit(Counts(), tmp_path, log_every=4)
    assert [row["counted"] for row in curves.train] == [2 * (0 + 3) / 2, 2 * 6, 2 * 9]


def test_a_ratio_with_nothing_counted_is_left_out_of_its_row_and_empty_in_the_file(tmp_path):
    curves = fit(Counts(), tmp_path / "scratch", log_every=2)
    assert [row.get("counted") for row in curves.train] == [0, 6, None, 12, 18, None]
    curves.write(tmp_path)
    with (tmp_path / "curves" / "train.csv").open(newline="") as file:
        assert [row["counted"] for row in csv.DictReader(file)] == ["0.0", "6.0", "", "12.0", "18.0", ""]


def test_counts_survive_an_interruption(tmp_path):
    class StopsInBetween(Counts):
        def batch(self, positions):
            if positions.start == 4 * 8:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().batch(positions)

    expected = fit(Counts(), tmp_path / "whole")
    with pytest.raises(Interrupted):
        fit(StopsInBetween(), tmp_path / "cut")
    assert fit(Counts(), tmp_path / "cut") == expected


def test_gradient_accumulation_changes_nothing_but_memory(tmp_path):
    whole, parts = LineTask(), LineTask()
    fit(whole, tmp_path / "whole")
    fit(parts, tmp_path / "parts", gradient_accumulation=4)
    torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-4, atol=1e-5)


def test_the_published_weights_are_the_average(tmp_path):
    averaged, raw = LineTask(), LineTask()
    curves = fit(averaged, tmp_path / "averaged")
    fit(raw, tmp_path / "raw", ema_decay=0.0)
    assert not torch.allclose(weights(averaged), weights(raw))
    assert averaged.validate(torch.device("cpu"))["loss"] == pytest.approx(curves.val[-1]["loss"], rel=1e-6)


def test_curves_average_the_loss_between_two_lines(tmp_path):
    curves = fit(LineTask(), tmp_path)
    assert [row["step"] for row in curves.train] == [5, 10, 12]
    assert [row["step"] for row in curves.val] == [4, 8, 12]
    each = fit(LineTask(), tmp_path / "each", log_every=1)
    assert curves.train[0]["loss"] == pytest.approx(sum(row["loss"] for row in each.train[:5]) / 5)
    assert curves.train[-1]["loss"] < curves.train[0]["loss"]


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(tmp_path):
    class Explodes(LineTask):
        def loss(self, net, batch):
            loss, logs = super().loss(net, batch)
            return loss * torch.inf, logs

    task = Explodes()
    before = weights(task)
    with pytest.raises(ValueError, match=r"gradient at step 0 is (nan|inf).*Lower line\.lr"):
        fit(task, tmp_path)
    torch.testing.assert_close(weights(task), before, rtol=0, atol=0)


def test_fewer_processes_than_params_say_are_refused(tmp_path):
    with pytest.raises(ValueError, match="num_processes is 2, but 1 run"):
        fit(LineTask(), tmp_path, num_processes=2)


def test_an_error_in_the_batch_thread_reaches_the_caller(tmp_path):
    class Broken(LineTask):
        def batch(self, positions: range) -> dict[str, torch.Tensor]:
            raise ValueError("train-00003.tar is missing")

    with pytest.raises(ValueError, match="train-00003"):
        fit(Broken(), tmp_path)
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_bf16_arithmetic_keeps_fp32_weights(tmp_path):
    exact, rounded = LineTask(), LineTask()
    fit(exact, tmp_path / "exact")
    AcceleratorState._reset_state(reset_partial_state=True)  # a singleton that remembers the first precision
    fit(rounded, tmp_path / "rounded", precision="bf16")
    AcceleratorState._reset_state(reset_partial_state=True)
    assert weights(rounded).dtype == torch.float32
    difference = (weights(rounded) - weights(exact)).abs().max()
    assert 0 < float(difference) < 0.05


TWO_PROCESSES = """
import sys, torch
from pathlib import Path
from tests.training.line_task import LineTask, line_params
from darkroom.tracking.tracker import NullTracker
from darkroom.training.loop import train
task = LineTask()
train(task, line_params(num_processes=2), name="line", scratch=Path(sys.argv[1]) / "scratch", tracker=NullTracker())
torch.save(torch.cat([p.detach().flatten() for p in task.net.parameters()]), Path(sys.argv[1]) / f"{torch.distributed.get_rank()}.pt")
"""


def test_two_processes_train_the_same_weights_as_one(tmp_path):
    (tmp_path / "two_processes.py").write_text(TWO_PROCESSES)
    line = command("two_processes", [str(tmp_path)], num_processes=2, config_file=None)
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), root])}
    result = subprocess.run(line, env=environment, cwd=root, capture_output=True, text=True, timeout=180)
    assert result.returncode == 0, result.stderr
    one = LineTask()
    fit(one, tmp_path / "one")
    for rank in (0, 1):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), weights(one), rtol=1e-4, atol=1e-5)


class FrozenStart(LineTask):
    """Its first layer is frozen, and has a buffer beside it that training changes."""

    def __init__(self) -> None:
        super().__init__()
        first, *rest = self.net.children()
        self.net = torch.nn.Sequential(first.requires_grad_(False), torch.nn.BatchNorm1d(4, affine=False), *rest)


def test_a_checkpoint_holds_what_training_changes_and_resumes_exactly(tmp_path):
    whole, resumed = FrozenStart(), FrozenStart()
    frozen = resumed.net[0].weight.clone()
    expected = fit(whole, tmp_path / "whole", lr_decay="constant")
    fit(FrozenStart(), tmp_path / "cut", lr_decay="constant", steps=6)
    stored = tmp_path / "cut" / "step-00000006"
    buffers = {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert set(load_file(stored / "net.safetensors")) == {"3.weight", "3.bias"} | buffers
    assert set(load_file(stored / "ema.safetensors")) == {"3.weight", "3.bias"}
    assert fit(resumed, tmp_path / "cut", lr_decay="constant").train[-1] == expected.train[-1]
    torch.testing.assert_close(resumed.net.state_dict(), whole.net.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(resumed.net[0].weight, frozen, rtol=0, atol=0)


def test_without_an_average_a_checkpoint_has_no_second_copy_of_the_weights(tmp_path):
    task = LineTask()
    fit(task, tmp_path, ema_decay=0.0)
    assert load_file(tmp_path / "step-00000012" / "ema.safetensors") == {}
    torch.testing.assert_close(load_file(tmp_path / "step-00000012" / "net.safetensors"), task.net.state_dict(), rtol=0, atol=0)
