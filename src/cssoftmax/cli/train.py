"""Training a network, measuring it again, and its report."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cssoftmax import jobs, recipes, runs
from cssoftmax import report as reports
from cssoftmax.cli.console import (
    NETWORK_HELP,
    DataRoot,
    Json,
    Network,
    Quiet,
    Source,
    aligned,
    explained,
    given,
    is_main_process,
    out,
    print_json,
    warn_of_slow_precision,
)
from cssoftmax.cli.display import Display
from cssoftmax.data.table import OnError
from cssoftmax.losses import LOSSES

TRAIN_HELP = """Train a network on SOURCE and measure it on the test split.

SOURCE is digits (embedded; the default), mnist, cifar10, cifar100, fsdd, esc10, a folder with one subfolder per class
(images or sounds), a parquet file or folder, or hf:OWNER/NAME. The named ones come from the hub, or from --data-root if
that folder has them.

With --stream the data set is not loaded: its labels are read, and each sample when it is its turn. Row groups of
parquet files, on disk or on the hub, stand in a random order; each batch is drawn from --shuffle-buffer samples of it.

\b
Examples:
  cssoftmax train
  cssoftmax train digits --loss softmax --output runs/softmax
  cssoftmax train cifar10 --data-root ~/data --epochs 5 --seed 1
  cssoftmax train mnist --recipe best --amp bf16
  cssoftmax train photos/ --network resnet18 --image-size 64
  cssoftmax train photos/ --network mine.models:tiny --embedding-size 256
  cssoftmax train mnist --embedding-size 2 --output runs/plane
  cssoftmax train digits --track tensorboard && tensorboard --logdir runs
  cssoftmax train --resume runs/digits-cs-softmax-0
  cssoftmax train hf:OWNER/NAME --stream --shuffle-buffer 20000
  accelerate launch --num_processes 4 -m cssoftmax train hf:OWNER/NAME --shard-classes --sample-rate 0.1
  accelerate launch --num_processes 4 --use_fsdp --fsdp_version 2 -m cssoftmax train photos/ --network resnet18

Settings that are left out come from the recipe of the data set, or of its kind: its quick one, or
--recipe best. The run's folder receives config.json (all that is needed to repeat it), metrics.jsonl (a line an epoch),
weights.safetensors, summary.json and report.html.
Ctrl-C stops after saving.
"""


@explained
def train(
    context: typer.Context,
    source: Source = "digits",
    loss: Annotated[str, typer.Option(help=f"One of {', '.join(LOSSES)}.")] = "cs-softmax",
    margin: Annotated[float | None, typer.Option(help="Margin factor; for arcface in radians.")] = None,
    scale: Annotated[
        float | None, typer.Option(help="Scale factor; left out, it follows the number of classes.")
    ] = None,
    weight_update: Annotated[
        float | None, typer.Option(help="Weight update factor in [0, 1], of cs-softmax only.")
    ] = None,
    relaxation: Annotated[float | None, typer.Option(help="Relaxation factor in (0, 0.5], of circle only.")] = None,
    factor: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Any other factor of the loss, like sub_centers=2; may be repeated."),
    ] = None,
    recipe: Annotated[
        recipes.Variant | None,
        typer.Option(help="quick: minutes on two CPU cores; best: for accuracy, hours, named data sets only."),
    ] = None,
    network: Annotated[str | None, typer.Option(help=NETWORK_HELP)] = None,
    width: Annotated[int | None, typer.Option(help="Channels of the network's first layer.")] = None,
    embedding_size: Annotated[
        int | None, typer.Option(help="Numbers in an embedding; 2 can be drawn as it is.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training split.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples a step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    class_lr_scale: Annotated[
        float | None, typer.Option(help="Learning rate of the class weights, as a multiple of --lr.")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Weight decay of the network's weights.")] = None,
    schedule: Annotated[
        Literal["one-cycle", "cosine"] | None,
        typer.Option(help="How the learning rate falls: on a straight line, or along half a cosine."),
    ] = None,
    warmup: Annotated[
        float | None, typer.Option(help="Fraction of steps in which learning rate and margin rise.")
    ] = None,
    muon_lr: Annotated[
        float | None,
        typer.Option(help="Muon's learning rate, for the hidden weights in place of SGD's; 0.24 is usual."),
    ] = None,
    label_smoothing: Annotated[
        float | None, typer.Option(help="Share of the target that goes to all classes, in [0, 1).")
    ] = None,
    clip_norm: Annotated[float | None, typer.Option(help="Largest norm of the gradient; 0 clips nothing.")] = None,
    ema: Annotated[
        float | None, typer.Option(help="Decay of the moving average of the weights; 0 averages nothing.")
    ] = None,
    mixup: Annotated[float | None, typer.Option(help="Alpha of mixup; 0 mixes nothing.")] = None,
    low_resolution: Annotated[
        float | None,
        typer.Option(help="Fraction of steps, the first ones, on images of 5/8 of their height and width."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, order and augmentation.", min=0, max=2**32 - 1)] = 0,
    validation: Annotated[
        float,
        typer.Option(help="Hold out this fraction of the training split and measure on it, not on the test split."),
    ] = 0.0,
    test_group: Annotated[
        str | None, typer.Option(help="Fold (esc10) or speaker (fsdd) to test on, never trained on.")
    ] = None,
    on_error: Annotated[
        OnError,
        typer.Option(help="A sample that cannot be used: fail, or skip it and list it in skipped.txt."),
    ] = "fail",
    image_size: Annotated[int | None, typer.Option(help="Height and width to bring the images of a folder to.")] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Read and decode samples as they are needed: for data larger than memory.")
    ] = False,
    shuffle_buffer: Annotated[
        int | None,
        typer.Option(
            help="With --stream: samples that each batch is drawn from; about twice as many are held "
            f"[{runs.SHUFFLE_BUFFER}]."
        ),
    ] = None,
    amp: Annotated[
        runs.Amp, typer.Option(help="Lower precision of the network; the loss is computed in float32 all the same.")
    ] = "no",
    cpu: Annotated[bool, typer.Option("--cpu", help="Leave a GPU unused.")] = False,
    shard_classes: Annotated[
        bool, typer.Option("--shard-classes", help="Share out the class weights over the processes; see above.")
    ] = False,
    sample_rate: Annotated[
        float,
        typer.Option(help="In each step, of the classes that the batch does not have, this share, drawn anew."),
    ] = 1.0,
    track: Annotated[
        list[str] | None,
        typer.Option(help="Tell tensorboard, wandb, mlflow, ... of every epoch; may be repeated."),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Run folder [runs/SOURCE-LOSS-SEED].")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the run in this folder, with the settings it was begun with.")
    ] = None,
    data_root: DataRoot = None,
    cache_dir: Annotated[Path | None, typer.Option(help="Folder of decoded data [~/.cache/cssoftmax].")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    if resume is not None:
        _refuse_with_resume(context)
        with Display(quiet) as display:
            run = jobs.resume(resume, data_root=data_root, network=network, watcher=display.watcher)
            _show([run], run, display, as_json)
    elif shuffle_buffer is not None and not stream:
        raise ValueError("shuffle_buffer: is for samples that are streamed; add --stream, or leave it out")
    else:
        warn_of_slow_precision(amp)
        changes = {
            "variant": recipe,
            "network": network,
            "width": width,
            "embedding_size": embedding_size,
            "epochs": epochs,
            "batch_size": batch_size,
            "lr": lr,
            "class_lr_scale": class_lr_scale,
            "weight_decay": weight_decay,
            "schedule": schedule,
            "warmup": warmup,
            "muon_lr": muon_lr,
            "label_smoothing": label_smoothing,
            "clip_norm": clip_norm,
            "ema": ema,
            "mixup": mixup,
            "low_resolution": low_resolution,
        }
        factors = {"margin": margin, "scale": scale, "weight_update": weight_update, "relaxation": relaxation}
        factors |= _factors(factor or [])
        name = Path(source).name if "/" in source or Path(source).exists() else source
        with Display(quiet) as display:
            run = jobs.train(
                runs.Source(
                    source,
                    data_root,
                    cache_dir,
                    image_size,
                    test_group,
                    validation,
                    on_error=on_error,
                    shuffle_buffer=runs.SHUFFLE_BUFFER if stream and shuffle_buffer is None else shuffle_buffer,
                ),
                output or Path("runs") / f"{name.replace(':', '-') or 'folder'}-{loss}-{seed}",
                loss=loss,
                loss_settings=given(factors),
                recipe_changes=given(changes),
                seed=seed,
                amp=amp,
                cpu=cpu,
                shard_classes=shard_classes,
                sample_rate=sample_rate,
                track=track or (),
                watcher=display.watcher,
            )
            _show([run], run, display, as_json)


@explained
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A folder that `cssoftmax train` wrote.")],
    network: Network = None,
    data_root: DataRoot = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure a trained run again, and write its report anew.

    \b
    Example:
      cssoftmax evaluate runs/digits-cs-softmax-0
    """
    with Display(quiet) as display:
        jobs.evaluate(run, data_root=data_root, network=network, watcher=display.watcher)
        _show([run], run, display, as_json)


@explained
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders that `cssoftmax train` wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page, NAME.html, or a folder for it.")] = Path(
        "report"
    ),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Put runs side by side on one HTML page: measures, plots, samples, and an explorer of margins.

    \b
    Example:
      cssoftmax report runs/digits-softmax-0 runs/digits-cs-softmax-0 --output runs/report
    """
    with Display(quiet) as display:
        _show(runs, output, display, as_json)


def _show(runs: Sequence[Path], folder: Path, display: Display, as_json: bool) -> None:
    """Writes the report of the runs into a folder; prints the table of measures and the report's path."""
    if not is_main_process():
        return
    display.phase("drawing the report")
    loaded = [reports.load_run(run) for run in runs]
    path = reports.write_report(runs, folder)
    display.close()
    if as_json:
        print_json({"report": path, "runs": [{"run": run.path, **run.summary} for run in loaded]})
        return
    for line in aligned(reports.measures_table(loaded)):
        out.print(line, markup=False)
    out.print(f"report: {path}", markup=False)


def _factors(words: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE, the value as JSON where it is JSON: a number, true, false, or a schedule."""
    factors = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals and value):
            raise ValueError(f"--factor: {word!r} is not NAME=VALUE, like sub_centers=2")
        try:
            factors[name] = json.loads(value)
        except ValueError:
            factors[name] = value
    return factors


# What may be given with --resume.
RESUMED = ("resume", "data_root", "network", "as_json", "quiet")


def _refuse_with_resume(context: typer.Context) -> None:
    for name in context.params:
        source = context.get_parameter_source(name)
        if name not in RESUMED and source is not None and source.name == "COMMANDLINE":
            given = "SOURCE" if name == "source" else f"--{name.replace('_', '-')}"
            raise ValueError(f"{given}: --resume goes on with the settings the run was begun with; leave {given} out")
