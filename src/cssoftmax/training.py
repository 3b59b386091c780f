"""The loop: every step's randomness is drawn from (seed, step) alone, so that a resumed run is the run."""

import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn
from torch.utils.flop_counter import FlopCounterMode

from cssoftmax.checkpoint import Parts, Progress, TrainingError, load_checkpoint, save_checkpoint
from cssoftmax.classifier import Classifier, as_input
from cssoftmax.data import Split
from cssoftmax.data.augment import (
    ImageAugment,
    SoundAugment,
    flipped,
    image_augmentation,
    mixup,
    sound_augmentation,
)
from cssoftmax.data.shards import read_ahead
from cssoftmax.processes import (
    are_finite,
    clip_gradients,
    fully_sharded,
    gradient_is_finite,
    is_sharded,
    shard_network,
    share_buffers,
    summed,
)
from cssoftmax.recipes import Recipe
from cssoftmax.wiring import param_groups

MOST_LEFT_OUT = 10
"""Steps with infinite or NaN numbers in them that a training leaves out before it gives up."""

PROXY_LEARNS_EVERY = 4
"""Steps from one in which a proxy learns, and does not only choose, to the next."""

LOOK_AHEAD_EVERY = 5
"""Steps from one meeting of fast and slow weights to the next; they also meet after each epoch, to be evaluated."""

SAVE_AFTER = 600.0
"""Seconds after which a checkpoint is written within an epoch."""

logger = logging.getLogger(__name__)


class Diverged(TrainingError):
    """The loss or a weight is no longer finite."""


class Interrupted(Exception):
    """The user asked to stop; the checkpoint is written."""


def fit(
    model: Classifier,
    split: Split,
    recipe: Recipe,
    *,
    seed: int,
    accelerator: Accelerator,
    checkpoint: Path,
    resume: bool = False,
    proxy: Classifier | None = None,
    on_step: Callable[[Progress], None] = lambda progress: None,
    on_epoch: Callable[[Classifier, dict[str, float]], None] = lambda model, metrics: None,
) -> Classifier:
    """Trains ``model`` on ``split`` and returns it, or its average or slow weights where the recipe asks for them.

    Args:
        model: the network must take what :func:`as_input` makes of ``split.inputs``.
        split: the training split, in memory or streamed.
        recipe: everything else there is to choose.
        seed: of the order of samples and of the augmentation. On one machine with one thread count a run repeats bit
            for bit.
        accelerator: device, processes and precision.
        checkpoint: a file, written after each epoch, every ten minutes, and when the user interrupts.
        resume: go on from ``checkpoint``, if it is there.
        proxy: a narrow twin of ``model``, trained beside it; of each batch ``model`` sees only the half that has the
            higher loss in the proxy, which takes little more than half the time. Source: K. Jordan's airbench96 (2024).
        on_step, on_epoch: called with the progress after each step, and with the model to evaluate and the training's
            measures after each epoch.

    Raises:
        Interrupted: Ctrl-C or SIGTERM arrived; the checkpoint holds the last finished step.
        Diverged: a weight is no longer finite, or more than :data:`MOST_LEFT_OUT` steps had infinite or NaN numbers in
            them; the checkpoint is from before. Up to then, such a step changes nothing, and a warning names its
            samples.
        TrainingError: the checkpoint does not fit.
    """
    device = accelerator.device
    inputs = split.inputs.to(device) if isinstance(split.inputs, Tensor) else split.inputs
    target = split.target.to(device)
    augment = augmentation(recipe)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    chooser = None if proxy is None else _Chooser(proxy, recipe, accelerator)
    average = None
    if recipe.ema or recipe.lookahead:
        average = _moving_average(model, recipe.ema, in_parts=fully_sharded(accelerator))
    network, loss, optimizer, prepared = _on_all_processes(model, average, recipe, accelerator)

    batch_size = min(recipe.batch_size, len(target))
    steps_per_epoch = _steps_per_epoch(split, recipe)
    progress = Progress(0, steps_per_epoch * recipe.epochs, steps_per_epoch)
    kept = _kept(model, optimizer, average, chooser)
    if resume and checkpoint.exists():
        progress = load_checkpoint(checkpoint, kept, accelerator.scaler, progress)
    mirrored = _mirrored(recipe, len(target), seed)
    steps = _rows(split, batch_size, progress, seed, accelerator)
    # To find the class of a sample among all costs a product with all: where few are drawn it is done as seldom.
    classify_every = round(1 / getattr(model.loss, "sample_rate", 1.0))

    saved = time.monotonic()
    with _stop_requested() as stop, closing(read_ahead(inputs, steps)) as reading:
        while progress.step < progress.steps:
            began = time.perf_counter()
            epoch, position = divmod(progress.step, steps_per_epoch)
            if position == 0:
                progress = replace(progress, loss_sum=0.0, correct=0.0, samples=0, told=0, seconds=0.0)
            rate = learning_rate(recipe, progress.step, progress.steps)
            _set_rate(optimizer, rate)

            rows, fetched = next(reading)
            torch.manual_seed(_fold(seed, progress.step))
            batch = as_input(fetched.to(device))
            if mirrored is not None:
                batch = flipped(batch, (mirrored[rows] ^ (epoch % 2 == 1)).to(device))
            batch, labels = augment(batch), target[rows.to(device)]
            if chooser is not None:
                chosen = chooser.harder_half(batch, labels, rate, learn=progress.step % PROXY_LEARNS_EVERY == 0)
                batch, labels, rows = batch[chosen], labels[chosen], rows[chosen.cpu()]
            buffers = [buffer.clone() for buffer in model.buffers()]
            model.train()
            with accelerator.autocast():
                embeddings, value = _forward(network, loss, batch, labels, recipe.mixup)
            accelerator.backward(value)
            if recipe.clip_norm:
                accelerator.unscale_gradients(prepared)
                clip_gradients(model, recipe.clip_norm)
            correct, number = 0, 0
            if progress.step % classify_every == 0:
                correct, number = int((model.loss.classify(embeddings) == labels).sum()), len(labels)
            fine = bool(value.isfinite()) and (accelerator.scaler is not None or gradient_is_finite(model))
            late = accelerator.is_main_process and time.monotonic() - saved > SAVE_AFTER
            loss_sum, samples, hits, told, unfit, asked, due = summed(
                accelerator, value.item() * len(labels), len(labels), correct, number, not fine, stop.requested, late
            )
            if not unfit:
                prepared.step()
                if average is not None and recipe.ema:
                    average.update_parameters(model)
                progress = replace(
                    progress,
                    loss_sum=progress.loss_sum + loss_sum,
                    correct=progress.correct + hits,
                    samples=progress.samples + int(samples),
                    told=progress.told + int(told),
                    first_loss=progress.first_loss or loss_sum / samples,
                )
            else:
                for buffer, before in zip(model.buffers(), buffers, strict=True):
                    buffer.copy_(before)
                progress = replace(progress, left_out=progress.left_out + 1)
                if accelerator.scaler is not None:  # it leaves the step out, too, and seeks a lower scale
                    prepared.step()
                where, cause = _cause(batch, embeddings, rows)
                if progress.left_out > MOST_LEFT_OUT:
                    remedy = "repair or remove these samples" if where == "inputs" else _lower(recipe)
                    what = f"{'data' if where == 'inputs' else 'lr'}: {progress.left_out} steps had {cause}"
                    raise Diverged(_stopped(what, remedy, progress, checkpoint))
                if not fine:
                    logger.warning("step %d left out: %s", progress.step + 1, cause)
            prepared.zero_grad()
            step, stopping = progress.step + 1, bool(asked)
            finished_epoch = step % steps_per_epoch == 0
            if average is not None and recipe.lookahead and (finished_epoch or step % LOOK_AHEAD_EVERY == 0):
                _meet(model, average.module, recipe.lookahead * (progress.step / progress.steps) ** 3)
            progress = replace(progress, step=step, seconds=progress.seconds + time.perf_counter() - began)
            on_step(progress)
            if not (finished_epoch or stopping or due):
                continue

            if accelerator.num_processes > 1:
                for module in (model, average):
                    share_buffers(module)
            if not are_finite(model, accelerator):
                raise Diverged(_stopped("lr: a weight became infinite or NaN", _lower(recipe), progress, checkpoint))
            if finished_epoch:
                _warn_of_a_rising_loss(progress, recipe)
                metrics = {
                    "epoch": progress.epoch,
                    "train_loss": progress.loss_sum / max(progress.samples, 1),
                    "train_accuracy": progress.correct / max(progress.told, 1),
                    "lr": recipe.lr * rate,
                    "seconds": progress.seconds,
                }
                on_epoch(_evaluated(model, average), metrics)
            save_checkpoint(checkpoint, kept, accelerator, progress)
            saved = time.monotonic()
            if (stopping or (stop.requested and accelerator.num_processes == 1)) and progress.step < progress.steps:
                raise Interrupted(f"stopped after step {progress.step} of {progress.steps}")
    return _evaluated(model, average)


def _on_all_processes(
    model: Classifier, average: AveragedModel | None, recipe: Recipe, accelerator: Accelerator
) -> tuple[nn.Module, nn.Module, torch.optim.SGD, AcceleratedOptimizer]:
    """Network and loss as a step calls them, their optimizer, and the same as a step uses it."""
    fully = fully_sharded(accelerator)
    if fully:
        for one in (model, *([cast(Classifier, average.module)] if average is not None else [])):
            shard_network(one.network, accelerator)
        optimizer = _optimizer(model, recipe)
        network, prepared = model.network, accelerator.prepare_optimizer(optimizer)
    else:
        if accelerator.device.type == "cuda":
            model.network.compile()
        optimizer = _optimizer(model, recipe)
        network, prepared = accelerator.prepare(model.network, optimizer)
    loss: nn.Module = model.loss
    if not is_sharded(model.loss.weight):
        loss = nn.parallel.DistributedDataParallel(loss) if fully else accelerator.prepare(loss)
    elif getattr(model.loss, "sample_rate", 1.0) < 1:
        from cssoftmax.sharded import step_drawn_rows

        step_drawn_rows(optimizer, model.loss)
    return network, loss, optimizer, prepared


def _forward(network: nn.Module, loss: nn.Module, batch: Tensor, labels: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Embeddings of a batch and its loss, mixed up where ``alpha`` is over 0."""
    if not alpha:
        embeddings: Tensor = network(batch)
        return embeddings, loss(embeddings, labels)
    batch, labels, others, share = mixup(batch, labels, alpha)
    embeddings = network(batch)
    return embeddings, share * loss(embeddings, labels) + (1 - share) * loss(embeddings, others)


class _Chooser:
    """A proxy in training: it chooses the harder half of each batch."""

    def __init__(self, proxy: Classifier, recipe: Recipe, accelerator: Accelerator) -> None:
        self.proxy, self.accelerator = proxy, accelerator
        proxy.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        proxy.loss.reduction = "none"
        self.optimizer = _optimizer(proxy, recipe)
        self.network, self.prepared = accelerator.prepare(proxy.network, self.optimizer)
        self.loss = accelerator.prepare(proxy.loss)

    def harder_half(self, batch: Tensor, labels: Tensor, rate: float, *, learn: bool) -> Tensor:
        """Rows of the batch, in their order; a row whose loss is NaN is among the hardest."""
        self.proxy.train()
        with torch.set_grad_enabled(learn), self.accelerator.autocast():
            losses = self.loss(self.network(batch), labels)
        chosen: Tensor = losses.detach().topk(max(len(losses) // 2, 1)).indices.sort().values
        if learn and losses.isfinite().all():
            _set_rate(self.optimizer, rate)
            self.accelerator.backward(losses[chosen].mean())
            self.prepared.step()
            self.prepared.zero_grad()
        return chosen


def _optimizer(model: Classifier, recipe: Recipe) -> torch.optim.SGD:
    groups = param_groups(
        model.network,
        model.loss,
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        class_lr_scale=recipe.class_lr_scale,
        bias_lr_scale=recipe.bias_lr_scale,
    )
    for group in groups:
        group["peak"] = group["lr"]
    return torch.optim.SGD(groups, momentum=recipe.momentum, nesterov=recipe.momentum > 0)


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rates to this share of their peaks."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * rate


def _rows(split: Split, batch_size: int, progress: Progress, seed: int, accelerator: Accelerator) -> Iterator[Tensor]:
    """This process's rows of each step that is left."""
    for epoch in range(progress.epoch, progress.steps // progress.steps_per_epoch):
        generator = _generator(seed, epoch)
        if isinstance(split.inputs, Tensor):
            order = torch.randperm(len(split.target), generator=generator)
        else:
            order = split.inputs.order(generator, batch_size, accelerator.num_processes)
        for step in range(max(progress.step - epoch * progress.steps_per_epoch, 0), progress.steps_per_epoch):
            rows = order[step * batch_size : (step + 1) * batch_size]
            yield rows[accelerator.process_index :: accelerator.num_processes]


def _mirrored(recipe: Recipe, samples: int, seed: int) -> Tensor | None:
    """Which samples are mirrored in the even epochs, the others being so in the odd ones; None where none ever is."""
    if not (isinstance(recipe.augment, ImageAugment) and recipe.augment.flip):
        return None
    return torch.rand(samples, generator=_generator(seed, -1)) < 0.5


def margin_warmup_steps(split: Split, recipe: Recipe) -> int:
    """Training forwards of the loss in which its margin rises, as the learning rate does; mixup takes two a step."""
    steps = _steps_per_epoch(split, recipe) * recipe.epochs
    return round(recipe.warmup * steps) * (2 if recipe.mixup else 1)


def _steps_per_epoch(split: Split, recipe: Recipe) -> int:
    return len(split.target) // min(recipe.batch_size, len(split.target))


def flops(model: Classifier, split: Split, epochs: int, proxy: Classifier | None = None) -> float:
    """Operations of the matrix products and convolutions of a training, forward and backward; evaluation aside."""
    seen = len(split.target) * epochs
    if proxy is None:
        return _flops_of_a_sample(model, split) * seen
    forward = 1 / 3 + 2 / 3 * 0.5 / PROXY_LEARNS_EVERY  # of the half that it chose it goes backward, too
    return (0.5 * _flops_of_a_sample(model, split) + forward * _flops_of_a_sample(proxy, split)) * seen


def _flops_of_a_sample(model: Classifier, split: Split) -> float:
    weight, inputs = model.loss.weight, as_input(split.inputs[:1])
    model.eval()
    with FlopCounterMode(display=False) as counter:
        model(inputs.to(weight.device)).sum().backward()
    model.zero_grad()
    head = 3 * 2 * weight.numel()
    return float(counter.get_total_flops() + head)


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """The learning rate of a step, as a share of its peak.

    >>> from cssoftmax.recipes import NAMED
    >>> [round(learning_rate(NAMED["mnist"], step, 100), 2) for step in (0, 12, 25, 62, 99)]
    [0.02, 0.5, 0.99, 0.5, 0.01]
    """
    done = (step + 0.5) / steps
    if done < recipe.warmup:
        return done / recipe.warmup
    left = (1 - done) / (1 - recipe.warmup)
    return left if recipe.schedule == "one-cycle" else (1 - math.cos(math.pi * left)) / 2


def augmentation(recipe: Recipe) -> Callable[[Tensor], Tensor]:
    """What a recipe does to each training batch, as a function of it; mixup, which also mixes labels, aside."""
    if isinstance(recipe.augment, ImageAugment):
        return image_augmentation(recipe.augment)
    if isinstance(recipe.augment, SoundAugment):
        return sound_augmentation(recipe.augment)
    return lambda batch: batch


def _kept(
    model: Classifier, optimizer: torch.optim.Optimizer, average: AveragedModel | None, chooser: _Chooser | None
) -> Parts:
    """What a checkpoint holds, by name."""
    modules: dict[str, nn.Module] = {"model": model}
    optimizers = {"optimizer": optimizer}
    if average is not None:
        modules["average"] = average
    if chooser is not None:
        modules["proxy"], optimizers["proxy_optimizer"] = chooser.proxy, chooser.optimizer
    return modules, optimizers


def _moving_average(model: Classifier, decay: float, *, in_parts: bool = False) -> AveragedModel:
    if in_parts or is_sharded(model.loss.weight):  # which do not go into one operation with whole ones
        return AveragedModel(model, avg_fn=get_ema_avg_fn(decay), use_buffers=True)  # type: ignore[no-untyped-call]
    average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return AveragedModel(model, multi_avg_fn=average, use_buffers=True)


@torch.no_grad()
def _meet(fast: nn.Module, slow: nn.Module, kept: float) -> None:
    """Moves slow weights and statistics to the fast ones, all but the share ``kept`` of the way, and these to them."""
    pairs = zip([*fast.parameters(), *fast.buffers()], [*slow.parameters(), *slow.buffers()], strict=True)
    for ahead, behind in pairs:
        if ahead.is_floating_point():
            behind.lerp_(ahead, 1 - kept)
            ahead.copy_(behind)
        else:
            behind.copy_(ahead)


def _evaluated(model: Classifier, average: AveragedModel | None) -> Classifier:
    return model if average is None else cast(Classifier, average.module)


def _cause(batch: Tensor, embeddings: Tensor, rows: Tensor) -> tuple[str, str]:
    """Where a step's infinite or NaN numbers began, and that in words, with the training samples."""
    fine = {
        name: values.detach().flatten(1).isfinite().all(1).cpu()
        for name, values in (("inputs", batch), ("embeddings", embeddings))
    }
    where = next((name for name, rows_fine in fine.items() if not rows_fine.all()), "gradient")
    named = rows[~fine[where]].tolist() if where in fine else rows.tolist()
    shown = ", ".join(map(str, named[:8])) + (f" and {len(named) - 8} more" if len(named) > 8 else "")
    return where, f"infinite or NaN {where} of training samples {shown}"


def _warn_of_a_rising_loss(progress: Progress, recipe: Recipe) -> None:
    loss = progress.loss_sum / max(progress.samples, 1)
    if loss > 3 * max(progress.first_loss, 1.0):
        logger.warning(
            "epoch %d: the loss rose from %.3g to %.3g; --lr %g is far too high, try a tenth of it",
            progress.epoch,
            progress.first_loss,
            loss,
            recipe.lr,
        )


def _lower(recipe: Recipe) -> str:
    return f"lower --lr from {recipe.lr:g}, or set --clip-norm"


def _stopped(what: str, remedy: str, progress: Progress, checkpoint: Path) -> str:
    kept = f"the checkpoint {checkpoint} is from before" if checkpoint.exists() else "no checkpoint was written yet"
    epoch = max(progress.step - 1, 0) // progress.steps_per_epoch + 1
    return f"{what}, at step {progress.step} of {progress.steps} (epoch {epoch}); {remedy}; {kept}"


def _fold(seed: int, step: int) -> int:
    return (seed * 1_000_003 + step) % 2**63


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(_fold(seed, epoch))


class _Stop:
    requested = False


@contextmanager
def _stop_requested() -> Iterator[_Stop]:
    """Turns the first Ctrl-C or SIGTERM into a request; a second Ctrl-C is an ordinary one."""
    stop = _Stop()
    before: dict[signal.Signals, Any] = {}

    def request(number: int, frame: object) -> None:
        stop.requested = True
        signal.signal(signal.SIGINT, before.get(signal.SIGINT, signal.default_int_handler))

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, request)
    except ValueError:  # not in the main thread, where signals do not arrive
        pass
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
