"""The commands; flags in, one call out."""

import sys
from typing import Annotated

import typer

from cssoftmax import __version__
from cssoftmax.cli import bench, compare, console, doctor, model, train

HELP = """Train, evaluate and explain embedding networks with CS-Softmax and its relatives.

\b
Examples:
  cssoftmax train
  cssoftmax train photos/ --loss softmax --output runs/softmax
  cssoftmax evaluate runs/softmax
  cssoftmax report runs/softmax runs/digits-cs-softmax-0
  cssoftmax predict runs/softmax photo.png

`cssoftmax train --help` says what can be trained on, and how; every command has examples. Exit codes: 0 done; 1 not
done, and one line says why; 2 wrong usage; 3 `verify` found two different; 130 interrupted.
`cssoftmax --install-completion` makes the Tab key complete commands and options in your shell.
"""

app = typer.Typer(
    name="cssoftmax",
    help=HELP,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        console.out.print(__version__)
    elif context.invoked_subcommand is None:
        console.out.print(context.get_help(), markup=False)


app.command("train", help=train.TRAIN_HELP)(train.train)
app.command("evaluate")(train.evaluate)
app.command("report")(train.report)
app.command("compare", help=compare.COMPARE_HELP)(compare.compare)
app.command("embed")(model.embed)
app.command("predict")(model.predict)
app.command("verify")(model.verify)
app.command("search")(model.search)
app.command("enroll")(model.enroll)
app.command("export")(model.export)
app.command("push")(model.push)
app.command("doctor")(doctor.doctor)

bench_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(bench_app, name="bench", help="Measure time and memory.")
bench_app.command("head", help=bench.HEAD_HELP)(bench.head)
bench_app.command("step", help=bench.STEP_HELP)(bench.step)


def main() -> None:
    """The ``cssoftmax`` command."""
    try:
        code = app(prog_name="cssoftmax", standalone_mode=False)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "cssoftmax"
        text = " ".join(error.format_message().split()).rstrip(".")
        console.err.print(f"error: {text}; see `{command} --help`", markup=False)
        sys.exit(error.exit_code)
    sys.exit(code or 0)
