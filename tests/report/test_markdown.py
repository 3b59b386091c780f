"""Tables of runs as text, and the command that makes a run again."""

import json
import math
import shlex
from dataclasses import asdict
from pathlib import Path

import typer

from cssoftmax import cli, recipes
from cssoftmax.metrics import MEASURES, format_value
from cssoftmax.report import load_run, measures_table
from cssoftmax.report.markdown import command, markdown, settings_table
from cssoftmax.runs import Source

TITLES = {measure.key: measure.title for measure in MEASURES}
MEASURE = {measure.key: measure for measure in MEASURES}


def test_every_measure_of_every_run_side_by_side(make_run):
    runs = [
        load_run(make_run("a")),
        load_run(make_run("b", measures={"accuracy": 0.95, "nll": math.nan, "fisher_ratio": math.inf})),
    ]
    header, *rows = measures_table(runs)
    assert header == ["measure", "a", "b"]
    cells = {row[0]: row[1:] for row in rows}
    assert list(cells) == list(TITLES.values())
    some = measures_table([load_run(make_run("c", measures={"accuracy_tta": 0.5}))])
    assert some[-1] == ["Accuracy, averaged over views", "50.00 %"]
    assert cells[TITLES["accuracy"]] == [format_value(MEASURE["accuracy"], value) for value in (0.9, 0.95)]
    assert cells[TITLES["nll"]] == [format_value(MEASURE["nll"], 0.25), "-"]
    assert cells[TITLES["fisher_ratio"]] == ["-", format_value(MEASURE["fisher_ratio"], math.inf)]
    assert cells[TITLES["recall_at_1"]] == ["-", "-"]


def test_cells_are_shown_as_they_are():
    names = ["<b>|x", "a*b_c", "`$1$`", "two\nlines"]
    text = markdown([["class"], *([name] for name in names)])
    assert text.splitlines()[2:] == ["| &lt;b&gt;\\|x |", "| a\\*b\\_c |", "| \\`\\$1\\$\\` |", "| two lines |"]


def test_how_a_run_was_made(make_run):
    run = load_run(make_run(seed=7))
    assert command(run) == (
        "cssoftmax train digits --loss cs-softmax --margin 0.2 --scale 30.0 --weight-update 0.5 "
        "--network small --epochs 3 --batch-size 64 --lr 0.1 --seed 7"
    )
    cells = dict(settings_table([run]))
    assert cells["recipe: augment"] == "shift 2"
    assert cells["device"] == "cpu" and cells["training time, s"] == "6"
    assert cells["version: torch"] == "2.13.0" and cells["parameters"] == "12,345"


def test_the_command_of_a_run_is_one_that_train_takes(make_run):
    folder = make_run()
    config = json.loads((folder / "config.json").read_text())
    config["recipe"] = asdict(recipes.choose("cifar10", "image", "best"))
    config["source"] = asdict(Source("cifar10", Path("data"), validation=0.1)) | {"data_root": "data"}
    (folder / "config.json").write_text(json.dumps(config))
    words = shlex.split(command(load_run(folder)))
    train = typer.main.get_command(cli.app).commands["train"]
    taken = train.make_context("train", words[2:]).params
    given = {option for option in config["recipe"] if option in taken} - {"augment"}
    assert given >= {"network", "lr", "muon_lr", "warmup"}
    assert {option: taken[option] for option in given} == {option: config["recipe"][option] for option in given}
    assert taken["validation"] == 0.1 and taken["data_root"] == Path("data") and taken["margin"] == 0.2


def test_a_folder_with_spaces_is_quoted_in_the_command(make_run):
    folder = make_run()
    config = json.loads((folder / "config.json").read_text())
    config["source"] = "my photos; rm"
    (folder / "config.json").write_text(json.dumps(config))
    assert command(load_run(folder)).startswith("cssoftmax train 'my photos; rm' --loss")
