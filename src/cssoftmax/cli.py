"""The commands; flags in, one call out."""

import inspect
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec

import torch
import typer
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cssoftmax import __version__, bench, comparison, jobs, processor, report, training
from cssoftmax.data import Dataset
from cssoftmax.losses import LOSSES
from cssoftmax.networks import NETWORKS
from cssoftmax.recipes import Recipe

P = ParamSpec("P")

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

HELP = """Train, evaluate and explain embedding networks with CS-Softmax and its relatives.

\b
Examples:
  cssoftmax train
  cssoftmax train photos/ --loss softmax --output runs/softmax
  cssoftmax evaluate runs/softmax
  cssoftmax report runs/softmax runs/digits-cs-softmax-0

`cssoftmax train --help` says what can be trained on, and how.
"""

TRAIN_HELP = """Train a network on SOURCE and measure it on the test split.

SOURCE is digits (embedded; the default), mnist, cifar10, cifar100, fsdd, esc10, a folder with one subfolder per class
(images or sounds), a parquet file or folder, or hf:OWNER/NAME. The named ones come from the hub, or from --data-root if
that folder has them.

\b
Examples:
  cssoftmax train
  cssoftmax train digits --loss softmax --output runs/softmax
  cssoftmax train cifar10 --data-root ~/data --epochs 5 --seed 1
  cssoftmax train photos/ --network resnet18 --image-size 64
  cssoftmax train mnist --embedding-size 2 --output runs/plane
  cssoftmax train --resume runs/digits-cs-softmax-0

Settings that are left out come from the recipe of the data set, or of its kind. The run's folder receives config.json
(all that is needed to repeat it), metrics.jsonl (a line an epoch), weights.safetensors, summary.json and report.md.
Ctrl-C stops after saving.
"""

COMPARE_HELP = """Compare losses on SOURCE: same data, network, first weights, batches, budget; only the loss differs.

The folder receives comparison.md with a table, paired differences, a box plot and a conclusion; comparison.json; and
every training as it finishes. The same command goes on with a comparison that was interrupted; losses may be added.

\b
Protocols:
  closed        the data set's test split; where folds are the split (esc10), every fold in turn
  verification  same or different? on a speaker that was not trained on, every one in turn (fsdd), or on a fifth of the
                classes, held out (other data)
  open          reject a fifth of the classes, held out, by maximum cosine and by maximum probability

\b
Examples:
  cssoftmax compare digits
  cssoftmax compare cifar10 --losses cs-softmax,softmax,cosface,arcface --seeds 5 --tune 8 --jobs 2
  cssoftmax compare cifar100 --protocol verification --epochs 15 --output runs/verify
"""

BENCH_HELP = """Time and peak memory of a loss's forward and backward pass, beside plain softmax and other libraries.

Heads take turns; times are medians. "of matmul rate" is the share that the three products would have of a head's time,
at the fastest rate measured in the same run. Memory is what a step needs at most beyond embeddings, class weights and
their gradients.

\b
Examples:
  cssoftmax bench head
  cssoftmax bench head --classes 1000 --classes 100000 --repeats 5 --output bench/two
  cssoftmax bench head --classes 10 --batch-size 128 --embedding-size 64 --head "Linear + CE" --head CS-Softmax
"""

app = typer.Typer(
    name="cssoftmax",
    help=HELP,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Source = Annotated[str, typer.Argument(metavar="SOURCE", show_default=True)]
DataRoot = Annotated[
    Path | None, typer.Option("--data-root", envvar="CSSOFTMAX_DATA", help="Folder that holds the named data sets.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")]


def explained(command: Callable[P, None]) -> Callable[P, None]:
    """A user's mistake becomes one line and exit code 1, an interruption code 130."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except training.Interrupted as stop:
            err.print(f"interrupted: {stop}", markup=False)
            raise typer.Exit(130) from None
        except KeyboardInterrupt:
            err.print("interrupted", markup=False)
            raise typer.Exit(130) from None
        except (ValueError, RuntimeError, OSError, ImportError, MemoryError) as error:
            if os.environ.get("CSSOFTMAX_TRACEBACK") or isinstance(error, typer.Exit):
                raise
            err.print(f"error: {_explanation(error, inspect.signature(command).parameters)}", markup=False)
            raise typer.Exit(1) from None

    return run


def _explanation(error: Exception, options: Iterable[str]) -> str:
    """One line; where the error begins with a setting's name, that of the option that sets it."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in text):
        return f"not enough memory ({text or 'MemoryError'}); lower --batch-size, --width or --image-size"
    if isinstance(error, RuntimeError) and not isinstance(error, training.TrainingError):
        raise error
    name = re.match(r"\w+(?=: )", text)
    return f"--{text.replace('_', '-', name[0].count('_'))}" if name and name[0] in options else text


@app.callback(invoke_without_command=True)
def top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        out.print(__version__)
    elif context.invoked_subcommand is None:
        out.print(context.get_help(), markup=False)


@app.command(help=TRAIN_HELP)
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
    network: Annotated[str | None, typer.Option(help=f"One of {', '.join(NETWORKS)}.")] = None,
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
    warmup: Annotated[float | None, typer.Option(help="Fraction of steps in which the learning rate rises.")] = None,
    label_smoothing: Annotated[
        float | None, typer.Option(help="Share of the target that goes to all classes, in [0, 1).")
    ] = None,
    clip_norm: Annotated[float | None, typer.Option(help="Largest norm of the gradient; 0 clips nothing.")] = None,
    ema: Annotated[
        float | None, typer.Option(help="Decay of the moving average of the weights; 0 averages nothing.")
    ] = None,
    mixup: Annotated[float | None, typer.Option(help="Alpha of mixup; 0 mixes nothing.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, order and augmentation.", min=0, max=2**32 - 1)] = 0,
    validation: Annotated[
        float,
        typer.Option(help="Hold out this fraction of the training split and measure on it, not on the test split."),
    ] = 0.0,
    test_group: Annotated[
        str | None, typer.Option(help="Fold (esc10) or speaker (fsdd) to test on, never trained on.")
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Height and width to bring the images of a folder to.")] = None,
    amp: Annotated[
        jobs.Amp, typer.Option(help="Lower precision of the network; the loss is computed in float32 all the same.")
    ] = "no",
    cpu: Annotated[bool, typer.Option("--cpu", help="Leave a GPU unused.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Run folder [runs/SOURCE-LOSS-SEED].")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the run in this folder, with the settings it was begun with.")
    ] = None,
    data_root: DataRoot = None,
    cache_dir: Annotated[Path | None, typer.Option(help="Folder of decoded data [~/.cache/cssoftmax].")] = None,
    quiet: Quiet = False,
) -> None:
    if resume is not None:
        _refuse_with_resume(context)
        with _Display(quiet) as display:
            _show([jobs.resume(resume, data_root=data_root, watcher=display.watcher)], resume, display)
    else:
        _warn_of_slow_precision(amp)
        recipe = {
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
            "label_smoothing": label_smoothing,
            "clip_norm": clip_norm,
            "ema": ema,
            "mixup": mixup,
        }
        factors = {"margin": margin, "scale": scale, "weight_update": weight_update, "relaxation": relaxation}
        factors |= _factors(factor or [])
        name = Path(source).name if "/" in source or Path(source).exists() else source
        with _Display(quiet) as display:
            run = jobs.train(
                jobs.Source(source, data_root, cache_dir, image_size, test_group, validation),
                output or Path("runs") / f"{name.replace(':', '-') or 'folder'}-{loss}-{seed}",
                loss=loss,
                loss_settings=_given(factors),
                recipe_changes=_given(recipe),
                seed=seed,
                amp=amp,
                cpu=cpu,
                watcher=display.watcher,
            )
            _show([run], run, display)


@app.command()
@explained
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A folder that `cssoftmax train` wrote.")],
    data_root: DataRoot = None,
    quiet: Quiet = False,
) -> None:
    """Measure a trained run again, and write its report anew.

    \b
    Example:
      cssoftmax evaluate runs/digits-cs-softmax-0
    """
    with _Display(quiet) as display:
        jobs.evaluate(run, data_root=data_root, watcher=display.watcher)
        _show([run], run, display)


@app.command("report")
@explained
def report_command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders that `cssoftmax train` wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for report.md and its pictures.")] = Path(
        "report"
    ),
    quiet: Quiet = False,
) -> None:
    """Put runs side by side: one table of all measures, and pictures.

    \b
    Example:
      cssoftmax report runs/digits-softmax-0 runs/digits-cs-softmax-0 --output runs/report
    """
    with _Display(quiet) as display:
        _show(runs, output, display)


def _show(runs: Sequence[Path], folder: Path, display: "_Display") -> None:
    """Writes the report of the runs into a folder; prints the table of measures and the report's path."""
    display.phase("drawing the report")
    loaded = [report.load_run(run) for run in runs]
    curves = [report.LogitCurve(**jobs.logit_curve(run)) for run in runs]
    path = report.write_report(runs, folder, curves=curves)
    display.close()
    for line in _aligned(report.measures_table(loaded)):
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


def _aligned(table: Sequence[Sequence[str]]) -> Iterator[str]:
    """A line a row, however wide: the first column flush left, the others flush right."""
    widths = [max(cell_len(cell) for cell in column) for column in zip(*table, strict=True)]
    for row in table:
        first, *rest = (" " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True))
        yield "  ".join([row[0] + first, *(pad + cell for pad, cell in zip(rest, row[1:], strict=True))])


def _refuse_with_resume(context: typer.Context) -> None:
    for name in context.params:
        source = context.get_parameter_source(name)
        if name not in ("resume", "data_root", "quiet") and source is not None and source.name == "COMMANDLINE":
            given = "SOURCE" if name == "source" else f"--{name.replace('_', '-')}"
            raise ValueError(f"{given}: --resume goes on with the settings the run was begun with; leave {given} out")


@app.command(help=COMPARE_HELP)
@explained
def compare(
    source: Source = "digits",
    losses: Annotated[
        str, typer.Option(help=f"Names with commas between, of {', '.join(LOSSES)}.")
    ] = "softmax,cs-softmax,cosface,arcface",
    protocol: Annotated[comparison.Protocol, typer.Option(help="What is tested; see above.")] = "closed",
    seeds: Annotated[int, typer.Option(help="Trainings of each loss, from --seed on.", min=1)] = 5,
    tune: Annotated[
        int,
        typer.Option(
            help="Trials of each loss over its own settings and the learning rate, on validation data.", min=0
        ),
    ] = 0,
    network: Annotated[str | None, typer.Option(help=f"One of {', '.join(NETWORKS)}.")] = None,
    width: Annotated[int | None, typer.Option(help="Channels of the network's first layer.")] = None,
    embedding_size: Annotated[int | None, typer.Option(help="Numbers in an embedding.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training split.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples a step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate; with --tune, where its search begins.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Weight decay of the network's weights.")] = None,
    seed: Annotated[int, typer.Option(help="The first seed.", min=0, max=2**32 - 1)] = 0,
    image_size: Annotated[int | None, typer.Option(help="Height and width to bring the images of a folder to.")] = None,
    amp: Annotated[jobs.Amp, typer.Option(help="Lower precision of the network.")] = "no",
    cpu: Annotated[bool, typer.Option("--cpu", help="Leave a GPU unused.")] = False,
    processes: Annotated[
        int, typer.Option("--jobs", "-j", help="Trainings at a time; they share the threads.", min=1)
    ] = 1,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the comparison [runs/SOURCE-PROTOCOL].")
    ] = None,
    data_root: DataRoot = None,
    cache_dir: Annotated[Path | None, typer.Option(help="Folder of decoded data [~/.cache/cssoftmax].")] = None,
    quiet: Quiet = False,
) -> None:
    _warn_of_slow_precision(amp)
    recipe = {
        "network": network,
        "width": width,
        "embedding_size": embedding_size,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "weight_decay": weight_decay,
    }
    name = Path(source).name if "/" in source or Path(source).exists() else source
    folder = output or Path("runs") / f"{name.replace(':', '-') or 'folder'}-{protocol}"
    with _ComparisonDisplay(quiet) as display:
        result = comparison.compare(
            jobs.Source(source, data_root, cache_dir, image_size),
            folder,
            losses=[loss.strip() for loss in losses.split(",") if loss.strip()],
            protocol=protocol,
            seeds=seeds,
            tune=tune,
            recipe_changes=_given(recipe),
            seed=seed,
            amp=amp,
            cpu=cpu,
            processes=processes,
            watcher=display.watcher,
        )
    path = report.write_comparison(result, folder)
    for line in _aligned(report.summary_table(result)):
        out.print(line, markup=False)
    for key in result["headlines"]:
        out.print(report.conclusion(result, key), markup=False)
    out.print(f"report: {path}", markup=False)


bench_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(bench_app, name="bench", help="Measure time and memory.")


@bench_app.command("head", help=BENCH_HELP)
@explained
def bench_head(
    classes: Annotated[list[int] | None, typer.Option(help="Classes C; may be given several times.", min=1)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows N [512; 256 from 100,000 classes].", min=1)] = None,
    embedding_size: Annotated[int | None, typer.Option(help="D [512; 128 from 1,000,000 classes].", min=1)] = None,
    head: Annotated[list[str] | None, typer.Option(help="A head, as the table calls it; by default all.")] = None,
    repeats: Annotated[int | None, typer.Option(help="Turns [as many as 10 s hold, at least 3].", min=1)] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda [cuda, if there is one].")] = None,
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(help="Of embeddings and class weights.")] = "float32",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for head.json, head.md and head.png.")] = Path(
        "bench"
    ),
    quiet: Quiet = False,
) -> None:
    shapes = [
        bench.Shape(
            batch_size or (512 if number < 100_000 else 256),
            embedding_size or (512 if number < 1_000_000 else 128),
            number,
        )
        for number in classes or (10, 100, 1000, 10_000, 100_000, 1_000_000)
    ]
    with _Display(quiet) as display:
        found = bench.head(
            shapes,
            output,
            names=head or (),
            repeats=repeats,
            device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
            dtype=getattr(torch, dtype),
            command=shlex.join(["cssoftmax", *sys.argv[1:]]),
            watch=display.work,
        )
    for line in _aligned(list(bench.table(found))):
        out.print(line, markup=False)
    out.print(f"report: {output / 'head.md'}", markup=False)


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def _warn_of_slow_precision(amp: str) -> None:
    if amp == "bf16" and (slowdown := processor.bfloat16_slowdown()) > 1.5:
        err.print(
            "warning: --amp bf16: this processor only emulates bfloat16; its matrix products take "
            f"{slowdown:.0f} times as long as in float32. Leave --amp out unless a GPU is used.",
            markup=False,
        )


class _Display:
    """A progress bar with time left on a terminal; a line an epoch everywhere."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.watcher = jobs.Watcher(self.start, self.step, self.epoch, self.phase)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=err,
            disable=quiet or not err.is_terminal,
            transient=True,
        )
        self.task = self.bar.add_task("", total=None, detail="")
        self.epochs = 0
        self.drawn = 0.0

    def __enter__(self) -> "_Display":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self.bar.stop()

    def start(self, dataset: Dataset, recipe: Recipe, model: training.Classifier, epoch: int) -> None:
        self.epochs = recipe.epochs
        if not self.quiet:
            size = sum(parameter.numel() for parameter in model.parameters())
            err.print(
                f"{dataset.name}: {len(dataset.train.target)} training and {len(dataset.test.target)} evaluation "
                f"samples, {len(dataset.classes)} classes; {recipe.network}, {size:,} parameters; {model.loss}; "
                f"epochs {epoch + 1} to {recipe.epochs}",
                markup=False,
            )

    def phase(self, name: str) -> None:
        """What a stretch of work without steps is called; a training goes on where it was."""
        if name == "training" or self.bar.tasks[0].description in ("", "training"):
            self.bar.update(self.task, description=name)
        else:
            self.bar.reset(self.task, description=name, total=None, detail="")
        self.bar.start()

    def work(self, done: int, total: int, text: str) -> None:
        self.bar.update(self.task, total=total, completed=done, detail=text)
        self.bar.start()

    def step(self, progress: training.Progress) -> None:
        now = time.monotonic()
        if self.bar.disable or (now - self.drawn < 0.1 and progress.step < progress.steps):
            return
        self.drawn = now
        loss = progress.loss_sum / max(progress.samples, 1)
        detail = f"{progress.step}/{progress.steps} steps  loss {loss:.4f}"
        self.bar.update(self.task, total=progress.steps, completed=progress.step, detail=detail, refresh=True)

    def epoch(self, metrics: dict[str, float]) -> None:
        if not self.quiet:
            err.print(
                f"epoch {metrics['epoch']:.0f}/{self.epochs}  train_loss {metrics['train_loss']:.4f}  "
                f"train_accuracy {metrics['train_accuracy']:.4f}  eval_loss {metrics['eval_loss']:.4f}  "
                f"eval_accuracy {metrics['eval_accuracy']:.4f}  seconds {metrics['seconds']:.1f}",
                markup=False,
            )


class _ComparisonDisplay:
    """A progress bar over all trainings, with time left, on a terminal; a line a training everywhere."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.watcher = comparison.Watcher(self.start, self.progress, self.line)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.1f}/{task.total:.0f} trainings"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=err,
            disable=quiet or not err.is_terminal,
            transient=True,
            speed_estimate_period=600,
        )
        self.task = self.bar.add_task("comparing", total=None, visible=False)

    def __enter__(self) -> "_ComparisonDisplay":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def start(self, description: str, trainings: int) -> None:
        self.line(f"{description}; {trainings} trainings")
        self.bar.update(self.task, total=trainings, visible=True)
        self.bar.start()

    def progress(self, trainings: float) -> None:
        self.bar.update(self.task, completed=trainings)

    def line(self, line: str) -> None:
        if not self.quiet:
            err.print(line, markup=False)


def main() -> None:
    """The ``cssoftmax`` command."""
    try:
        code = app(prog_name="cssoftmax", standalone_mode=False)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "cssoftmax"
        text = " ".join(error.format_message().split()).rstrip(".")
        err.print(f"error: {text}; see `{command} --help`", markup=False)
        sys.exit(error.exit_code)
    sys.exit(code or 0)
