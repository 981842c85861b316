"""The training loop of all stages. CLIP, VAE and U-Net differ in their Task; Accelerate handles one device or many."""

import csv
import logging
import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn

from darkroom.config import TrainingParams
from darkroom.device import best_device, use_bf16
from darkroom.progress import progress
from darkroom.tracking.tracker import Tracker
from darkroom.training.checkpoint import Checkpoints
from darkroom.training.draws import positions_of_step
from darkroom.training.optimizer import Ema, learning_rate, make_optimizer
from darkroom.training.task import Batch, Task

logger = logging.getLogger(__name__)


@dataclass
class Curves:
    """The values that a run has logged, by step. Checkpoints hold them, so that a resumed run has one unbroken curve."""

    train: list[dict[str, float]] = field(default_factory=list)
    val: list[dict[str, float]] = field(default_factory=list)

    def last_validation(self) -> dict[str, float]:
        return self.val[-1] if self.val else {}

    def write(self, folder: Path) -> None:
        """Write curves/train.csv and curves/val.csv, which DVC plots; a value that a step has not is left empty."""
        (folder / "curves").mkdir()
        for name, rows in {"train": self.train, "val": self.val}.items():
            columns = ["step", *sorted({"loss"}.union(*rows) - {"step"})]  # the keys of a checkpoint come back in another order
            with (folder / "curves" / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, fieldnames=columns)
                writer.writeheader()
                writer.writerows(rows)


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop and has written a checkpoint. The same command resumes it."""


def train(
    task: Task,
    params: TrainingParams,
    *,
    name: str,  # of the stage, for the progress bar
    scratch: Path,  # folder of the checkpoints; survives a kill
    tracker: Tracker,
    draw_preview: Callable[[int, torch.device], None] | None = None,  # (step, device); called at validation, with the EMA of the weights
    preview_every: int = 0,  # steps; 0 = with each validation
) -> Curves:
    """Train `task.net` in place and leave the EMA of the weights in `task.averaged`.

    Raises:
        ValueError: a loss or gradient is not finite, or the number of processes is not `params.num_processes`.
        Interrupted: SIGINT or SIGTERM was received; a checkpoint has been written.
    """
    # Devices, optimizer, EMA, checkpoint.
    bf16 = use_bf16(params.precision, best_device())
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # without it Accelerate ignores the other processes of a CPU run
        mixed_precision="bf16" if bf16 else "no",
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False)],
    )
    if accelerator.num_processes != params.num_processes:
        raise ValueError(
            f"{name}.num_processes is {params.num_processes}, but {accelerator.num_processes} run. Start the stage as dvc.yaml does, "
            f"with `python -m darkroom.training.launch stages.{name}`."
        )
    device = accelerator.device
    net, optimizer = accelerator.prepare(
        task.net, make_optimizer(task.net, kind=params.optimizer, lr=params.lr, weight_decay=params.weight_decay)
    )
    ema = Ema(task.averaged, params.ema_decay)
    checkpoints = Checkpoints(scratch, net=task.net, ema=ema, optimizer=optimizer)
    state = checkpoints.load_latest()
    curves = Curves(**state["curves"]) if state else Curves()
    first = state["step"] if state else 0
    _log_start(name, task, params, accelerator, first)

    def validate(step: int) -> None:
        with ema.applied(), torch.no_grad(), accelerator.autocast(), _evaluating(task.net):
            curves.val.append({"step": step, **task.validate(device)})
            if draw_preview and (step == params.steps or not preview_every or step % preview_every == 0):
                draw_preview(step, device)
        tracker.log_metrics({f"val/{key}": value for key, value in curves.val[-1].items() if key != "step"}, step)

    # The loop. Step numbers count finished steps from here on.
    sums = {key: torch.tensor(total, device=device) for key, total in state["sums"].items()} if state else {}
    with _signals() as stop, _prefetched(task, params, first, accelerator) as batches:
        task.net.train()
        for index in progress(range(first, params.steps), desc=name, total=params.steps, initial=first, unit="step"):
            for part in range(params.gradient_accumulation):
                batch = {key: tensor.to(device, non_blocking=True) for key, tensor in next(batches).items()}
                with _syncing(accelerator, net, part == params.gradient_accumulation - 1):
                    loss, logs = task.loss(net, batch)
                    accelerator.backward(loss / params.gradient_accumulation)
                for key, value in {"loss": loss, **logs}.items():
                    sums[key] = sums.get(key, 0.0) + value.detach().float() / params.gradient_accumulation
            grad_norm = _clip_gradients(accelerator, task, params.grad_clip)
            if not math.isfinite(float(grad_norm)):  # a non-finite loss gives a non-finite gradient; one host sync per step
                found = f"{float(grad_norm)} (loss {float(loss.detach()):.4g})"
                raise ValueError(f"The norm of the gradient at step {index} is {found}. Lower {name}.lr or {name}.grad_clip.")
            lr = learning_rate(index, lr=params.lr, warmup_steps=params.warmup_steps, decay=params.lr_decay, steps=params.steps)
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            ema.update(index)
            step = index + 1

            if step % params.log_every == 0 or step == params.steps:
                since = step - (curves.train[-1]["step"] if curves.train else 0)
                sums = {key: _mean_over_processes(accelerator, total) for key, total in sums.items()}
                curves.train.append({"step": step, **_means(sums, since), "lr": lr, "grad_norm": float(grad_norm)})
                tracker.log_metrics({f"train/{key}": value for key, value in curves.train[-1].items() if key != "step"}, step)
                sums = {}
            if step % params.val_every == 0 or step == params.steps:
                validate(step)
            stopping = _any_process(accelerator, stop.is_set())
            if step % params.checkpoint_every == 0 or step == params.steps or stopping:
                totals = {key: _mean_over_processes(accelerator, total).tolist() for key, total in sums.items()}
                if accelerator.is_main_process:
                    checkpoints.save(step, {"curves": vars(curves), "sums": totals})
                accelerator.wait_for_everyone()
            if stopping and step < params.steps:
                raise Interrupted(f"{name} was stopped at step {step} of {params.steps}. Start it again to resume from there.")

    accelerator.unwrap_model(net, keep_fp32_wrapper=False)
    ema.publish()
    task.net.eval()
    return curves


def _clip_gradients(accelerator: Accelerator, task: Task, limit: float) -> Tensor:
    """Clip the gradients of the averaged part and of its opponent, each by its own norm, and return the larger norm."""
    averaged = list(task.averaged.parameters())
    known = {id(parameter) for parameter in averaged}
    others = [parameter for parameter in task.net.parameters() if id(parameter) not in known]
    norms = [torch.as_tensor(accelerator.clip_grad_norm_(players, limit)) for players in (averaged, others) if players]
    return torch.stack(norms).max()


def _log_start(name: str, task: Task, params: TrainingParams, accelerator: Accelerator, first: int) -> None:
    parts = params.num_processes * params.gradient_accumulation
    trained = sum(parameter.numel() for parameter in task.net.parameters() if parameter.requires_grad)
    logger.info(
        "%s: %.2f M parameters on %s, %s; batch %d = %d x %d process(es) x %d micro-step(s); %d samples, %d steps = %.1f epochs%s",
        name,
        trained / 1e6,
        accelerator.device,
        accelerator.mixed_precision.replace("no", "fp32"),
        params.batch_size,
        params.batch_size // parts,
        params.num_processes,
        params.gradient_accumulation,
        task.num_samples,
        params.steps,
        params.steps * params.batch_size / task.num_samples,
        f"; resumed after step {first}" if first else "",
    )


@contextmanager
def _prefetched(task: Task, params: TrainingParams, first: int, accelerator: Accelerator) -> Iterator[Iterator[Batch]]:
    """Batches in order; a thread prepares two of them ahead. A reader that copies nothing needs no worker processes."""
    queue: Queue[Batch | BaseException] = Queue(maxsize=2)
    done = threading.Event()

    def work() -> None:
        try:
            for step in range(first, params.steps):
                for positions in positions_of_step(
                    step,
                    batch_size=params.batch_size,
                    gradient_accumulation=params.gradient_accumulation,
                    num_processes=accelerator.num_processes,
                    process=accelerator.process_index,
                ):
                    if done.is_set():
                        return
                    queue.put(task.batch(positions))
        except BaseException as error:  # handed to the loop, which raises it
            queue.put(error)

    def batches() -> Iterator[Batch]:
        while True:
            item = queue.get()
            if isinstance(item, BaseException):
                raise item
            yield item

    thread = threading.Thread(target=work, daemon=True, name="prefetch")
    thread.start()
    try:
        yield batches()
    finally:
        done.set()
        while thread.is_alive():  # a full queue would hold the thread
            while not queue.empty():
                queue.get_nowait()
            thread.join(timeout=0.05)


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set. The loop then finishes its step, writes a checkpoint and stops."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    kept = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


@contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    was_training = net.training
    net.eval()
    try:
        yield
    finally:
        net.train(was_training)


@contextmanager
def _syncing(accelerator: Accelerator, net: nn.Module, last: bool) -> Iterator[None]:
    """Average the gradients over processes in the last micro-step only."""
    if last:
        yield
    else:
        with accelerator.no_sync(net):
            yield


def _mean_over_processes(accelerator: Accelerator, value: Tensor) -> Tensor:
    mean: Tensor = accelerator.reduce(value, reduction="mean")
    return mean


def _means(sums: dict[str, Tensor], steps: float) -> dict[str, float]:
    """Sums over steps become means; a (sum, count) becomes its ratio and is left out if nothing was counted."""
    pairs = {key: total.tolist() if total.ndim else (float(total), steps) for key, total in sums.items()}
    return {key: value / count for key, (value, count) in pairs.items() if count}


def _any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Whether any process was asked to stop. All must stop at the same step, or some would wait forever for the others."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), reduction="sum").item() > 0)
