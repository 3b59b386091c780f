"""Comparing losses."""

from pathlib import Path
from typing import Annotated

import typer

from cssoftmax import comparison, recipes, report, runs
from cssoftmax.cli.console import (
    NETWORK_HELP,
    DataRoot,
    Json,
    Quiet,
    Source,
    aligned,
    explained,
    given,
    out,
    print_json,
    warn_of_slow_precision,
)
from cssoftmax.cli.display import ComparisonDisplay
from cssoftmax.data.table import OnError
from cssoftmax.losses import LOSSES

COMPARE_HELP = """Compare losses on SOURCE: same data, network, first weights, batches, budget; only the loss differs.

The folder receives comparison.md with a table, paired differences, a box plot and a conclusion; comparison.json; and
every training as it finishes. The same command goes on with a comparison that was interrupted; losses and seeds may be
added.

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
  cssoftmax compare fsdd --recipe best --by-group --seeds 1
"""


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
    by_group: Annotated[
        bool, typer.Option("--by-group", help="Hold out every fold or speaker in turn, whatever the protocol.")
    ] = False,
    recipe: Annotated[
        recipes.Variant | None,
        typer.Option(help="quick: minutes on two CPU cores; best: for accuracy, hours, named data sets only."),
    ] = None,
    network: Annotated[str | None, typer.Option(help=NETWORK_HELP)] = None,
    width: Annotated[int | None, typer.Option(help="Channels of the network's first layer.")] = None,
    embedding_size: Annotated[int | None, typer.Option(help="Numbers in an embedding.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training split.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples a step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate; with --tune, where its search begins.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Weight decay of the network's weights.")] = None,
    seed: Annotated[int, typer.Option(help="The first seed.", min=0, max=2**32 - 1)] = 0,
    on_error: Annotated[
        OnError,
        typer.Option(help="A sample that cannot be used: fail, or skip it and list it in skipped.txt."),
    ] = "fail",
    image_size: Annotated[int | None, typer.Option(help="Height and width to bring the images of a folder to.")] = None,
    amp: Annotated[runs.Amp, typer.Option(help="Lower precision of the network.")] = "no",
    cpu: Annotated[bool, typer.Option("--cpu", help="Leave a GPU unused.")] = False,
    processes: Annotated[
        int, typer.Option("--jobs", "-j", help="Trainings at a time; they share the threads.", min=1)
    ] = 1,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the comparison [runs/SOURCE-PROTOCOL].")
    ] = None,
    data_root: DataRoot = None,
    cache_dir: Annotated[Path | None, typer.Option(help="Folder of decoded data [~/.cache/cssoftmax].")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    warn_of_slow_precision(amp)
    changes = {
        "variant": recipe,
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
    with ComparisonDisplay(quiet) as display:
        result = comparison.compare(
            runs.Source(source, data_root, cache_dir, image_size, on_error=on_error),
            folder,
            losses=[loss.strip() for loss in losses.split(",") if loss.strip()],
            protocol=protocol,
            seeds=seeds,
            tune=tune,
            by_group=by_group,
            recipe_changes=given(changes),
            seed=seed,
            amp=amp,
            cpu=cpu,
            processes=processes,
            watcher=display.watcher,
        )
    path = report.write_comparison(result, folder)
    if as_json:
        print_json({"report": path, **result})
        return
    for line in aligned(report.summary_table(result)):
        out.print(line, markup=False)
    for key in result["headlines"]:
        out.print(report.conclusion(result, key), markup=False)
    out.print(f"report: {path}", markup=False)
