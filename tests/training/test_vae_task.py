"""The autoencoder in the training loop: several processes, interruptions, precision, what is averaged and validated."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import Tensor

from darkroom.tracking.tracker import NullTracker
from darkroom.training.loop import Curves, train
from darkroom.training.vae_task import JUDGED, VaeTask
from tests.training.tiny_vae import IMAGES, NOISE, objective, vae_task


@pytest.fixture(autouse=True)
def _no_remembered_precision():
    AcceleratorState._reset_state(reset_partial_state=True)  # a singleton that remembers the last one
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def fit(task: VaeTask, scratch: Path) -> Curves:
    return train(task, task.params, name="train_vae", scratch=scratch, tracker=NullTracker())


def states(task: VaeTask) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in task.net.state_dict().items()}


def test_resumed_training_with_a_discriminator_equals_uninterrupted_bit_for_bit(tmp_path):
    whole = vae_task()
    expected = fit(whole, tmp_path / "whole")

    class Dies(VaeTask):
        def batch(self, positions: range) -> dict[str, Tensor]:
            if positions.start == 5 * 4:
                raise RuntimeError("power cut")
            return super().batch(positions)

    cut = vae_task()
    cut.__class__ = Dies
    with pytest.raises(RuntimeError, match="power cut"):
        fit(cut, tmp_path / "cut")
    stored = load_file(tmp_path / "cut" / "step-00000004" / "net.safetensors")
    assert any(name.startswith("discriminator") for name in stored)
    resumed = vae_task()
    assert fit(resumed, tmp_path / "cut") == expected
    torch.testing.assert_close(states(resumed), states(whole), rtol=0, atol=0)


def test_both_players_learn_once_the_game_has_started(tmp_path):
    task = vae_task(weight_decay=0.0)
    before = states(task)
    curves = fit(task, tmp_path)
    assert [row["discriminator"] > 0 for row in curves.train] == [False, False, True, True, True, True]  # start_step is 2
    assert [row["adaptive_weight"] > 0 for row in curves.train] == [False, False, True, True, True, True]
    moved = {name.split(".")[0] for name, tensor in states(task).items() if not torch.equal(tensor, before[name])}
    assert moved == {"bound", "discriminator"}


def test_a_batch_is_judged_from_the_start_step_on_whatever_its_part_of_the_step():
    task = vae_task(gradient_accumulation=2)
    assert [JUDGED in task.batch(range(start, start + 2)) for start in (0, 6, 8, 10)] == [False, False, True, True]


def test_weights_and_optimizer_stay_fp32_under_bf16(tmp_path):
    task = vae_task(precision="bf16")
    seen: set[torch.dtype] = set()
    task.vae.decoder.conv_out.register_forward_hook(lambda _module, _inputs, output: seen.add(output.dtype))
    curves = fit(task, tmp_path)
    assert seen == {torch.bfloat16}  # the arithmetic is
    assert {tensor.dtype for tensor in states(task).values()} == {torch.float32}
    moments = torch.load(tmp_path / "step-00000006" / "optimizer.pt", weights_only=True)["state"].values()
    assert {tensor.dtype for state in moments for tensor in state.values()} == {torch.float32}
    AcceleratorState._reset_state(reset_partial_state=True)
    exact = fit(vae_task(), tmp_path / "exact")
    assert curves.train[0]["loss"] == pytest.approx(exact.train[0]["loss"], rel=1e-2)


def test_autoencoder_and_learned_scale_are_averaged_and_the_discriminator_is_not(tmp_path):
    task = vae_task()
    curves = fit(task, tmp_path)
    averaged = load_file(tmp_path / "step-00000006" / "ema.safetensors")
    assert {name.split(".")[0] for name in averaged} == {"vae", "likelihood"}
    torch.testing.assert_close(task.averaged.state_dict(), averaged, rtol=0, atol=0)
    assert task.net.bound.likelihood.to_json()["scale"] == pytest.approx(curves.val[-1]["scale"])
    assert curves.train[-1]["scale"] != curves.val[-1]["scale"]  # the last one, and the average


def test_validation_measures_the_bound_without_the_game():
    task = vae_task()
    task.net.eval()
    with torch.no_grad():
        numbers = task.validate(torch.device("cpu"))
    assert set(numbers) == {"loss", "nll", "kl", "scale", "psnr"}
    assert numbers["loss"] == pytest.approx(numbers["nll"] + numbers["kl"])


def test_the_loss_is_what_the_wrapped_network_gives_and_nothing_beside_it():
    task = vae_task()
    asked = []

    class Wrapper(torch.nn.Module):
        def forward(self, images: Tensor, noise: Tensor, *, judged: bool) -> dict[str, Tensor]:
            asked.append((images, noise, judged))
            return {"total": torch.tensor(3.0), "loss": torch.tensor(2.0)}

    batch = task.batch(range(8, 12))
    assert task.loss(Wrapper(), batch) == (torch.tensor(3.0), {"loss": torch.tensor(2.0)})
    assert asked == [(batch["images"], batch["noise"], True)]


def test_players_are_clipped_apart(tmp_path):
    loud = vae_task(adversarial={"weight": 1e-6, "start_step": 0, "channels": 8, "num_halvings": 1}, steps=1, warmup_steps=0)
    quiet = vae_task(adversarial={"weight": 0.0, "start_step": 0, "channels": 8, "num_halvings": 1}, steps=1, warmup_steps=0)
    with torch.no_grad():
        loud.net.discriminator.layers[-1].weight *= 1e4  # a discriminator with huge gradients
    fit(loud, tmp_path / "loud")
    AcceleratorState._reset_state(reset_partial_state=True)
    fit(quiet, tmp_path / "quiet")
    loud_moments, quiet_moments = (
        torch.load(tmp_path / name / "step-00000001" / "optimizer.pt", weights_only=True)["state"][0]["exp_avg"]
        for name in ("loud", "quiet")
    )
    torch.testing.assert_close(loud_moments, quiet_moments, rtol=1e-3, atol=1e-7)


ONE_OF_TWO = """
import sys, torch
from pathlib import Path
from torch.nn.parallel import DistributedDataParallel
from tests.training.tiny_vae import NOISE, IMAGES, objective
folder, rank = Path(sys.argv[1]), int(sys.argv[2])
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
net = DistributedDataParallel(objective(), gradient_as_bucket_view=True)
half = slice(4 * rank, 4 * rank + 4)
for judged in (False, True):
    net.zero_grad()
    net(IMAGES[half], NOISE[half], judged=judged)["total"].backward()
    torch.save({name: parameter.grad for name, parameter in net.module.named_parameters()}, folder / f"{rank}-{judged}.pt")
torch.distributed.destroy_process_group()
"""


def test_two_processes_have_the_gradients_of_one_with_the_whole_batch(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "GLOO_SOCKET_IFNAME": "lo"}
    commands = [[sys.executable, "-c", ONE_OF_TWO, str(tmp_path), str(rank)] for rank in (0, 1)]
    processes = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for command in commands]
    for process in processes:
        _, complaint = process.communicate(timeout=180)
        assert process.returncode == 0, complaint
    for judged in (False, True):
        one = objective()
        one(IMAGES, NOISE, judged=judged)["total"].backward()
        expected = {name: parameter.grad for name, parameter in one.named_parameters()}
        for rank in (0, 1):
            found = torch.load(tmp_path / f"{rank}-{judged}.pt", weights_only=True)
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)
