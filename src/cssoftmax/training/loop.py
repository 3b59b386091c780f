"""The loop: a step after the other, on one process or many, from wherever a checkpoint stands."""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from cssoftmax.checkpoint import Parts, Progress, load_checkpoint, save_checkpoint
from cssoftmax.classifier import Classifier
from cssoftmax.data import Split
from cssoftmax.data.augment import mixup
from cssoftmax.engine import memory
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
from cssoftmax.training import proxy as proxies
from cssoftmax.training.batches import batches
from cssoftmax.training.endings import (
    Interrupted,
    step_left_out,
    stop_requested,
    warn_of_a_rising_loss,
    weights_not_finite,
)
from cssoftmax.training.optimizer import evaluated, meet, moving_average, optimizer_of, set_rate
from cssoftmax.training.schedule import learning_rate, steps_per_epoch

LOOK_AHEAD_EVERY = 5
"""Steps from one meeting of fast and slow weights to the next; they also meet after each epoch, to be evaluated."""

SAVE_AFTER = 600.0
"""Seconds after which a checkpoint is written within an epoch."""


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
        Diverged: a weight is no longer finite, or more than ``endings.MOST_LEFT_OUT`` steps had infinite or NaN numbers
            in them; the checkpoint is from before. Up to then, such a step changes nothing, and a warning names its
            samples.
        TrainingError: the checkpoint does not fit, or there is a ``muon_lr`` and no weight for it.
    """
    if accelerator.device.type == "cpu":
        memory.keep_freed()
    model.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    chooser = None if proxy is None else proxies.Chooser(proxy, recipe, accelerator)
    average = None
    if recipe.ema or recipe.lookahead:
        average = moving_average(model, recipe.ema, in_parts=fully_sharded(accelerator))
    network, loss, optimizer, prepared = _on_all_processes(model, average, recipe, accelerator)

    per_epoch = steps_per_epoch(split, recipe)
    progress = Progress(0, per_epoch * recipe.epochs, per_epoch)
    kept = _kept(model, optimizer, average, chooser)
    if resume and checkpoint.exists():
        progress = load_checkpoint(checkpoint, kept, accelerator.scaler, progress)
    # To find the class of a sample among all costs a product with all: where few are drawn it is done as seldom.
    classify_every = round(1 / getattr(model.loss, "sample_rate", 1.0))

    saved = time.monotonic()
    drawn = batches(split, recipe, progress, seed=seed, accelerator=accelerator)
    with stop_requested() as stop, closing(drawn):
        while progress.step < progress.steps:
            began = time.perf_counter()
            if progress.step % per_epoch == 0:
                progress = replace(progress, loss_sum=0.0, correct=0.0, samples=0, told=0, seconds=0.0)
            rate = learning_rate(recipe, progress.step, progress.steps)
            set_rate(optimizer, rate)

            rows, batch, labels = next(drawn)
            if chooser is not None:
                chosen = chooser.harder_half(batch, labels, rate, learn=progress.step % proxies.LEARNS_EVERY == 0)
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
                with accelerator.autocast():  # Muon's products, too
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
                if accelerator.scaler is not None:  # it leaves the step out, too, and seeks a lower scale
                    prepared.step()
                progress = replace(progress, left_out=progress.left_out + 1)
                step_left_out(progress, recipe, checkpoint, batch, embeddings, rows, warn=not fine)
            prepared.zero_grad()
            step, stopping = progress.step + 1, bool(asked)
            finished_epoch = step % per_epoch == 0
            if average is not None and recipe.lookahead and (finished_epoch or step % LOOK_AHEAD_EVERY == 0):
                meet(model, average.module, recipe.lookahead * (progress.step / progress.steps) ** 3)
            progress = replace(progress, step=step, seconds=progress.seconds + time.perf_counter() - began)
            on_step(progress)
            if not (finished_epoch or stopping or due):
                continue

            if accelerator.num_processes > 1:
                for module in (model, average):
                    share_buffers(module)
            if not are_finite(model, accelerator):
                raise weights_not_finite(progress, recipe, checkpoint)
            if finished_epoch:
                warn_of_a_rising_loss(progress, recipe)
                metrics = {
                    "epoch": progress.epoch,
                    "train_loss": progress.loss_sum / max(progress.samples, 1),
                    "train_accuracy": progress.correct / max(progress.told, 1),
                    "lr": recipe.lr * rate,
                    "seconds": progress.seconds,
                }
                on_epoch(evaluated(model, average), metrics)
            save_checkpoint(checkpoint, kept, accelerator, progress)
            saved = time.monotonic()
            if (stopping or (stop.requested and accelerator.num_processes == 1)) and progress.step < progress.steps:
                raise Interrupted(f"stopped after step {progress.step} of {progress.steps}")
    return evaluated(model, average)


def _on_all_processes(
    model: Classifier, average: AveragedModel | None, recipe: Recipe, accelerator: Accelerator
) -> tuple[nn.Module, nn.Module, torch.optim.SGD, AcceleratedOptimizer]:
    """Network and loss as a step calls them, their optimizer, and the same as a step uses it."""
    fully = fully_sharded(accelerator)
    if fully:
        for one in (model, *([cast(Classifier, average.module)] if average is not None else [])):
            shard_network(one.network, accelerator)
        optimizer = optimizer_of(model, recipe)
        network, prepared = model.network, accelerator.prepare_optimizer(optimizer)
    else:
        if accelerator.device.type == "cuda":
            model.network.compile()
        optimizer = optimizer_of(model, recipe)
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


def _kept(
    model: Classifier, optimizer: torch.optim.Optimizer, average: AveragedModel | None, chooser: proxies.Chooser | None
) -> Parts:
    """What a checkpoint holds, by name."""
    modules: dict[str, nn.Module] = {"model": model}
    optimizers = {"optimizer": optimizer}
    if average is not None:
        modules["average"] = average
    if chooser is not None:
        modules["proxy"], optimizers["proxy_optimizer"] = chooser.proxy, chooser.optimizer
    return modules, optimizers
