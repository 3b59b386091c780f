"""The report's tables, its words about how a run was made, and that it is written whole or not at all."""

import json
import math
from dataclasses import replace

import pytest
import torch

from cssoftmax.metrics import MEASURES, format_value
from cssoftmax.report import LogitCurve, class_table, load_run, markdown, measures_table, write_report
from cssoftmax.report.markdown import escape

TITLES = {measure.key: measure.title for measure in MEASURES}
MEASURE = {measure.key: measure for measure in MEASURES}
GRID = torch.linspace(-1, 1, 51)


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures are made but not painted, which takes most of the time."""
    monkeypatch.setattr(markdown, "png", lambda figure: b"a picture")


def row_of(text, title):
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {escape(title)} |")]
    return [cell.strip() for cell in line.replace("\\|", "¦").strip("|").split("|")]


def test_every_measure_of_every_run_side_by_side(make_run):
    runs = [
        load_run(make_run("a")),
        load_run(make_run("b", measures={"accuracy": 0.95, "nll": math.nan, "fisher_ratio": math.inf})),
    ]
    header, *rows = measures_table(runs)
    assert header == ["measure", "a", "b"]
    cells = {row[0]: row[1:] for row in rows}
    assert list(cells) == list(TITLES.values())
    assert cells[TITLES["accuracy"]] == [format_value(MEASURE["accuracy"], value) for value in (0.9, 0.95)]
    assert cells[TITLES["nll"]] == [format_value(MEASURE["nll"], 0.25), "-"]
    assert cells[TITLES["fisher_ratio"]] == ["-", format_value(MEASURE["fisher_ratio"], math.inf)]
    assert cells[TITLES["recall_at_1"]] == ["-", "-"]


def test_the_best_of_several_runs_is_bold_and_of_one_run_nothing_is(make_run, tmp_path, undrawn):
    a, b = make_run("a"), make_run("b", measures={"accuracy": 0.95, "nll": 0.5, "eer": 0.05})
    text = write_report([a, b], tmp_path / "report").read_text()
    good, poor = (format_value(MEASURE["accuracy"], value) for value in (0.95, 0.9))
    assert row_of(text, TITLES["accuracy"])[1:] == [poor, f"**{good}**"]
    assert row_of(text, TITLES["nll"])[1].startswith("**") and not row_of(text, TITLES["nll"])[2].startswith("**")
    assert "**" not in "".join(row_of(text, TITLES["eer"]))  # equal
    alone = write_report([a], tmp_path / "alone").read_text()
    assert row_of(alone, TITLES["accuracy"])[1:] == [poor]


def test_runs_on_different_data_are_not_ranked(make_run, tmp_path, undrawn):
    a, b = make_run("a"), make_run("b", classes=5, measures={"accuracy": 0.95})
    text = write_report([a, b], tmp_path / "report").read_text()
    assert "measured on different data" in text
    assert "**" not in "".join(row_of(text, TITLES["accuracy"]))


def test_names_are_shown_as_they_are(make_run, tmp_path, undrawn):
    names = ["<b>|x", "a*b_c", "`$1$`", "two\nlines"]
    text = write_report([make_run("we|ird<i>", names=names)], tmp_path / "report").read_text()
    assert "<b>" not in text and "| &lt;b&gt;\\|x |" in text
    assert "| a\\*b\\_c |" in text and "| \\`\\$1\\$\\` |" in text and "| two lines |" in text
    assert "# Report: we\\|ird&lt;i&gt;" in text
    for line in text.splitlines():
        if line.startswith("| &lt;b&gt;"):
            assert line.replace("\\|", "").count("|") == 7


def test_per_class_facts():
    turn = torch.tensor([0, 10, 60, 80, 180, 180]).double().deg2rad()
    run = markdown.Run(
        path=None,
        config={"classes": ["a", "b", "c", "empty"]},
        history=[],
        summary={},
        embeddings=torch.stack([turn.cos(), turn.sin()], 1).float() * torch.arange(1, 7)[:, None],
        target=torch.tensor([0, 0, 1, 1, 2, 2]),
        logits=torch.eye(4)[torch.tensor([0, 0, 1, 0, 1, 1])],
        class_weights=torch.zeros(4, 2),
    )
    header, *rows = class_table(run)
    assert rows == [
        ["a", "2", "100.00 %", "5.0°", "b", "65.0°"],
        ["b", "2", "50.00 %", "10.0°", "a", "65.0°"],
        ["c", "2", "0.00 %", "0.0°", "b", "110.0°"],
        ["empty", "0", "-", "-", "-", "-"],
    ]
    assert len(header) == 6


def test_of_many_classes_the_least_accurate_come_first(make_run):
    run = load_run(make_run(classes=30, samples=300, noise=0.0))
    logits = run.logits.clone()
    logits[run.target == 17] = -run.logits[run.target == 17]
    _, *rows = class_table(replace(run, logits=logits))
    assert len(rows) == 20 and rows[0][0] == "class 17" and rows[0][2] == "0.00 %"


def test_how_a_run_was_made(make_run, tmp_path, undrawn):
    text = write_report([make_run(seed=7)], tmp_path / "report").read_text()
    assert (
        "cssoftmax train digits --loss cs-softmax --margin 0.2 --scale 30.0 --weight-update 0.5 "
        "--network small --epochs 3 --batch-size 64 --lr 0.1 --seed 7\n"
    ) in text
    assert row_of(text, "recipe: augment")[1] == "shift 2"
    assert row_of(text, "device")[1] == "cpu" and row_of(text, "training time, s")[1] == "6"
    assert row_of(text, "version: torch")[1] == "2.13.0" and row_of(text, "parameters")[1] == "12,345"


def test_a_folder_with_spaces_is_quoted_in_the_command(make_run, tmp_path, undrawn):
    folder = make_run()
    config = json.loads((folder / "config.json").read_text())
    config["source"] = "my photos; rm"
    (folder / "config.json").write_text(json.dumps(config))
    assert "cssoftmax train 'my photos; rm' --loss" in write_report([folder], tmp_path / "report").read_text()


def test_the_report_names_only_pictures_that_are_there(make_run, tmp_path, undrawn):
    curve = LogitCurve("cosface", 30.0, GRID, GRID - 0.35, GRID)
    path = write_report([make_run("a"), make_run("b", noise=0.3)], tmp_path / "report", curves=[curve])
    shown = {part.split(")")[0] for part in path.read_text().split("](")[1:]}
    there = {str(file.relative_to(path.parent)) for file in path.parent.rglob("*.png")}
    assert (
        shown
        == there
        == {
            f"figures/{name}.png"
            for name in ("cosines", "embeddings", "learning", "logits", "confusion-1", "confusion-2")
        }
    )


def test_the_same_runs_give_the_same_report(make_run, tmp_path):
    run = make_run(classes=21, samples=42)
    first, second = (write_report([run], tmp_path / name).parent for name in ("one", "two"))
    for file in first.rglob("*.*"):
        assert file.read_bytes() == (second / file.relative_to(first)).read_bytes()


def test_equal_curves_are_drawn_once_and_unequal_ones_have_their_runs_names(make_run):
    runs = [load_run(make_run(name)) for name in ("a", "b", "c")]
    curves = [LogitCurve("cosface", 30.0, GRID, GRID - margin, GRID) for margin in (0.2, 0.2, 0.3)]
    assert [curve.name for curve in markdown._named(runs, curves)] == ["cosface, a", "cosface, c"]
    assert [curve.name for curve in markdown._named(runs, curves[:2] + curves[:1])] == ["cosface"]


def test_nothing_is_half_written_when_a_picture_fails(make_run, tmp_path, undrawn, monkeypatch):
    run, output = make_run(), tmp_path / "report"
    before = write_report([run], output).read_text()
    (output / "figures" / "learning.png").unlink()
    files = {file: file.read_bytes() for file in output.rglob("*.*")}

    def fail(*_):
        raise RuntimeError("no ink")

    with monkeypatch.context() as patch:
        patch.setattr(markdown, "learning_curves", fail)
        with pytest.raises(RuntimeError, match="no ink"):
            write_report([run], output)
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)  # a full disk, while the first picture is written
        with pytest.raises(RuntimeError, match="no ink"):
            write_report([run], output)
    assert {file: file.read_bytes() for file in output.rglob("*.*")} == files
    assert write_report([run], output).read_text() == before


def test_no_run_is_a_mistake(tmp_path):
    with pytest.raises(ValueError, match="none given"):
        write_report([], tmp_path)
