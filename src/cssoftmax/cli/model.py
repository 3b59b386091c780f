"""What a trained run is good for: embeddings, classes, decisions, files for other programs."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cssoftmax import export as exporting
from cssoftmax import vectors
from cssoftmax.cli.console import DataRoot, Json, Network, Quiet, aligned, err, explained, out, print_json
from cssoftmax.cli.display import Display
from cssoftmax.data import DataError, open_stream
from cssoftmax.data.sources import IMAGE_SUFFIXES, SOUND_SUFFIXES, files_under
from cssoftmax.embedder import Decision, Embedder

Run = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A folder that `cssoftmax train` wrote, or a file of `cssoftmax export --format safetensors`.",
    ),
]
Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="Images or sounds, or folders of them.")]
Far = Annotated[
    float,
    typer.Option(help="False acceptance rate at which the threshold is set."),
]

DIFFERENT = 3
"""Exit code of `verify` where the two are different."""


@explained
def embed(
    run: Run,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="As in `train`; a folder without classes will do.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Parquet file: columns id, label, vector.")] = Path(
        "embeddings.parquet"
    ),
    network: Network = None,
    data_root: DataRoot = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the embeddings of all samples of SOURCE to a parquet file.

    Vectors have length one: their inner products are cosines. The file appears whole or not at all; after an
    interruption the same command goes on.

    \b
    Examples:
      cssoftmax embed runs/mnist-cs-softmax-0 mnist -o mnist.parquet
      cssoftmax embed runs/birds recordings/ -o birds.parquet --quiet
    """
    embedder = Embedder.load(run, network=network)
    stream = open_stream(source, data_root)
    with Display(quiet) as display:
        display.phase("embedding")
        count = vectors.write_vectors(
            embedder,
            stream,
            output,
            on_progress=lambda done, total: display.work(done, total, f"{done:,}/{total:,}"),
        )
    size = embedder.config["recipe"]["embedding_size"]
    if as_json:
        print_json({"output": output, "samples": count, "embedding_size": size, "weights": embedder.digest})
    else:
        out.print(f"embeddings: {output} ({count:,} of {size} numbers)", markup=False)


@explained
def predict(
    run: Run,
    files: Files,
    far: Far = 0.05,
    unknown: Annotated[
        Path | None, typer.Option(help="A folder of samples of no known class, to set the threshold on.")
    ] = None,
    network: Network = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say the class of each FILE, and the cosine to it; "unknown" where that is below the threshold.

    The threshold is set so that the share --far of unknown samples would be taken for a known class: of means of two
    evaluated samples of different classes, which stand in for them, or better of samples of your own (--unknown).
    Classes that were enrolled take part.

    \b
    Examples:
      cssoftmax predict runs/mnist-cs-softmax-0 seven.png
      cssoftmax predict model.safetensors photos/ --far 0.001 --json
      cssoftmax predict runs/birds song.wav --unknown other-birds/
    """
    embedder, paths = Embedder.load(run, network=network), _expanded(files)
    if unknown is not None:
        embedder.calibrate(_expanded([unknown]))
    found = embedder.predict(paths, far=far)
    _explain(embedder, "class", far, quiet or as_json)
    if as_json:
        threshold = embedder.threshold(far)
        keys = ("file", "class", "nearest", "cosine", "threshold")
        rows = [(path, p.label, p.nearest, p.cosine, threshold) for path, p in zip(paths, found, strict=True)]
        print_json([dict(zip(keys, row, strict=True)) for row in rows])
        return
    table = [("file", "class", "cosine", "nearest")]
    table += [
        (str(path), p.label or "unknown", f"{p.cosine:.3f}", p.nearest) for path, p in zip(paths, found, strict=True)
    ]
    for line in aligned(table):
        out.print(line, markup=False)


@explained
def verify(
    run: Run,
    a: Annotated[Path, typer.Argument(metavar="A", help="An image or a sound.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another.")],
    far: Far = 0.01,
    network: Network = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say whether A and B are of the same class, one that was trained on or not.

    The threshold is set so that the share --far of pairs of different classes would be called the same, on the split
    that the run was evaluated on. The exit code is 0 for the same, 3 for different.

    \b
    Examples:
      cssoftmax verify runs/speakers anna-1.wav anna-2.wav
      cssoftmax verify runs/speakers anna-1.wav bert.wav --far 0.001 --quiet || echo somebody else
    """
    embedder = Embedder.load(run, network=network)
    found = embedder.verify(a, b, far=far)
    _explain(embedder, "pair", far, quiet or as_json)
    if as_json:
        print_json(asdict(found))
    else:
        sign = "at least" if found.same else "below"
        said = f"{'same' if found.same else 'different'}: cosine {found.cosine:.3f}, {sign} {found.threshold:.3f}"
        out.print(said, markup=False)
    if not found.same:
        raise typer.Exit(DIFFERENT)


@explained
def search(
    run: Run,
    query: Annotated[Path, typer.Argument(metavar="QUERY", help="An image or a sound.")],
    within: Annotated[Path, typer.Option("--in", help="File that `cssoftmax embed` wrote with this run.")],
    count: Annotated[int, typer.Option("--count", "-n", help="Samples to show.", min=1)] = 5,
    network: Network = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find the samples whose embeddings are nearest to QUERY's, by cosine.

    \b
    Examples:
      cssoftmax search runs/mnist-cs-softmax-0 seven.png --in mnist.parquet
      cssoftmax search runs/birds song.wav --in birds.parquet --count 20 --json
    """
    hits = vectors.search(Embedder.load(run, network=network), query, within, count=count)
    if as_json:
        print_json([asdict(hit) for hit in hits])
        return
    for line in aligned([("id", "class", "cosine"), *((hit.id, hit.label or "", f"{hit.cosine:.3f}") for hit in hits)]):
        out.print(line, markup=False)


@explained
def enroll(
    run: Run,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the new class.")],
    files: Files,
    network: Network = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a new class known from a few examples, without training: by the mean direction of their embeddings.

    It is kept in RUN, and `predict` knows it from then on. A class that was enrolled before is replaced.

    \b
    Examples:
      cssoftmax enroll runs/birds wren wren-1.wav wren-2.wav wren-3.wav
      cssoftmax enroll model.safetensors wren recordings/wren/
    """
    embedder, paths = Embedder.load(run, network=network), _expanded(files)
    again = name in embedder.enrolled
    embedder.enroll(name, paths)
    embedder.save_enrolled(run)
    if as_json:
        print_json({"name": name, "examples": len(paths), "classes": list(embedder.classes)})
    else:
        done = "enrolled anew" if again else "enrolled"
        examples = "one example" if len(paths) == 1 else f"{len(paths)} examples"
        out.print(f"{done}: {name}, from {examples}; {len(embedder.classes)} classes", markup=False)


@explained
def export(
    run: Run,
    format: Annotated[
        exporting.Format, typer.Option(help="For other programs, for PyTorch alone, for this one.")
    ] = "onnx",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file [model.onnx, .pt2, .safetensors in RUN].")
    ] = None,
    network: Network = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the trained network as one file, checked against PyTorch's outputs.

    Inputs are prepared images or spectrograms, any number at a time; outputs are embeddings of length one, and logits.
    How to prepare them is in the file's metadata, with the class names. onnx is checked with onnxruntime.

    \b
    Examples:
      cssoftmax export runs/mnist-cs-softmax-0
      cssoftmax export runs/mnist-cs-softmax-0 --format torch-export -o digits.pt2
      cssoftmax export runs/mnist-cs-softmax-0 --format safetensors -o digits.safetensors
    """
    embedder = Embedder.load(run, network=network)
    beside = Path() if run.startswith("hf:") else Path(run) if Path(run).is_dir() else Path(run).parent
    path = output or beside / f"model{exporting.SUFFIXES[format]}"
    difference = exporting.export(embedder, path, format)
    if as_json:
        print_json({"output": path, "format": format, "difference": difference, **exporting.metadata(embedder)})
    else:
        out.print(f"exported: {path} (largest difference to PyTorch {difference:.1e})", markup=False)


@explained
def push(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A folder that `cssoftmax train` wrote.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="On the Hugging Face hub.")],
    private: Annotated[bool, typer.Option("--private", help="If it is new, make it private.")] = False,
    network: Network = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Upload RUN to the Hugging Face hub: weights, settings, measures and a model card, none of the data.

    `Embedder.load("hf:OWNER/NAME")` and all commands that take a RUN load it from there.

    \b
    Examples:
      cssoftmax push runs/mnist-cs-softmax-0 me/mnist-embeddings
      cssoftmax predict hf:me/mnist-embeddings seven.png
    """
    url = exporting.publish(Embedder.load(run, network=network), run, repository, private=private)
    if as_json:
        print_json({"url": url})
    else:
        out.print(f"pushed: {url}", markup=False)


def _expanded(paths: Sequence[Path]) -> list[Path]:
    """Folders replaced by the images and sounds in them."""
    found: list[Path] = []
    for path in paths:
        inside = files_under(path, IMAGE_SUFFIXES | SOUND_SUFFIXES) if path.is_dir() else [path]
        if not inside:
            raise DataError(f"{path}: no images or sounds in this folder")
        found += inside
    return found


def _explain(embedder: Embedder, decision: Decision, far: float, quiet: bool) -> None:
    """Where the threshold comes from."""
    calibration = embedder.calibration
    if quiet or calibration is None:
        return
    number = len(calibration.scores[decision])
    what = "blends of two classes" if decision == "class" else "pairs of different classes"
    of = f"{what} of the {calibration.split} split"
    if calibration.split == "given" and decision == "class":
        of = "samples that were given as unknown"
    threshold = embedder.threshold(far, decision)
    err.print(
        f"threshold {threshold:.3f}: false acceptance rate {100 * far:g} % of {number:,} {of}",
        markup=False,
    )
    if 0 < far * number < 1:
        err.print(
            f"warning: {number:,} are too few to hold {100 * far:g} %; the threshold is that of none", markup=False
        )
