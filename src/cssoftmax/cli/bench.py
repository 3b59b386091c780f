"""Measuring time and memory."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer

from cssoftmax import bench
from cssoftmax.cli.console import Json, Quiet, aligned, explained, out, print_json
from cssoftmax.cli.display import Display

HEAD_HELP = """Time and peak memory of a loss's forward and backward pass, beside plain softmax and other libraries.

Heads take turns; times are medians. "of matmul rate" is the share that the three products would have of a head's time,
at the fastest rate measured in the same run. Memory is what a step needs at most beyond embeddings, class weights and
their gradients, and what the process holds in all. Shapes measured by an earlier run on the same machine stay in the
folder's files.

\b
Examples:
  cssoftmax bench head
  cssoftmax bench head --classes 1000 --classes 100000 --repeats 5 --output bench/two
  cssoftmax bench head --classes 10 --batch-size 128 --embedding-size 64 --head "Linear + CE" --head CS-Softmax
"""


@explained
def head(
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
    as_json: Json = False,
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
    with Display(quiet) as display:
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
    if as_json:
        print_json(found)
        return
    for line in aligned(list(bench.table(found))):
        out.print(line, markup=False)
    out.print(f"report: {output / 'head.md'}", markup=False)


STEP_HELP = """Time of a whole training step (network, loss, backward, SGD) with CS-Softmax beside softmax.

\b
Examples:
  cssoftmax bench step
  cssoftmax bench step --network resnet18 --classes 1000 --batch-size 32 --turns 30
"""


@explained
def step(
    network: Annotated[str, typer.Option(help="A network on images, as `cssoftmax train` names it.")] = "resnet18",
    classes: Annotated[int, typer.Option(help="Classes C.", min=1)] = 1000,
    batch_size: Annotated[int, typer.Option(help="Images N.", min=1)] = 32,
    turns: Annotated[int, typer.Option(help="Turns of both.", min=1)] = 20,
    device: Annotated[str | None, typer.Option(help="cpu or cuda [cuda, if there is one].")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for step.json and step.md.")] = Path("bench"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    with Display(quiet) as display:
        found = bench.step(
            network,
            classes,
            batch_size,
            output,
            turns=turns,
            device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
            command=shlex.join(["cssoftmax", *sys.argv[1:]]),
            watch=display.work,
        )
    if as_json:
        print_json(found)
        return
    for line in aligned(list(bench.step_table(found))):
        out.print(line, markup=False)
    out.print(f"report: {output / 'step.md'}", markup=False)
