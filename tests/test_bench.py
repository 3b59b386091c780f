"""The measurement of heads: what it writes, what it refuses."""

import json

import pytest
import torch
from typer.testing import CliRunner

from cssoftmax import bench
from cssoftmax.cli import app

TINY = ["bench", "head", "--batch-size", "4", "--embedding-size", "3", "--repeats", "2", "--quiet"]


def test_heads_are_measured_and_written_down(tmp_path):
    heads = ["--head", "Linear + CE", "--head", "CS-Softmax"]
    result = CliRunner().invoke(app, [*TINY, *heads, "--classes", "5", "--classes", "7", "--output", str(tmp_path)])
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "head.json").read_text())
    rows = found["measurements"]
    assert [(row["head"], row["shape"]["classes"]) for row in rows] == [
        (head, classes) for classes in (5, 7) for head in ("Linear + CE", "CS-Softmax")
    ]
    assert all(row["seconds"] > 0 and row["turns"] == 2 for row in rows)
    assert found["versions"]["torch"] == torch.__version__ and "thread" in found["processor"]
    assert "| CS-Softmax |" in (tmp_path / "head.md").read_text()
    assert (tmp_path / "head.png").read_bytes().startswith(b"\x89PNG")


def test_an_unknown_head_is_named_with_those_there_are(tmp_path):
    result = CliRunner().invoke(app, [*TINY, "--head", "tail", "--output", str(tmp_path)])
    assert result.exit_code == 1
    assert "'tail' is not one of Linear + CE" in result.output


@pytest.mark.parametrize("name", [name for name in bench.heads("cpu") if "compile" not in name])
def test_every_head_takes_the_same_problem(name):
    x, w, y = bench.problem(bench.Shape(4, 3, 5), "cpu", torch.float32)
    bench.heads("cpu")[name](x, w, y)().backward()
    assert x.grad.isfinite().all()


def test_memory_is_what_a_step_needs_beyond_inputs_and_gradients():
    shape = bench.Shape(64, 8, 300_000)
    plain = bench.memory("Linear + CE", shape, "cpu", torch.float32)
    ours = bench.memory("CS-Softmax, chunked", shape, "cpu", torch.float32)
    if plain is None or ours is None:
        pytest.skip("this system does not tell the memory of a process")
    assert plain[0] > 2 * 4 * 64 * 300_000 > ours[0]
    assert ours[0] + 2 * 4 * 8 * 300_000 < ours[1]


def test_a_second_run_adds_its_shapes_to_the_first(tmp_path):
    for classes in ("5", "7", "5"):
        options = ["--head", "CS-Softmax", "--classes", classes, "--output", str(tmp_path)]
        assert CliRunner().invoke(app, [*TINY, *options]).exit_code == 0
    setting, found = bench.read(tmp_path / "head.json")
    assert [m.shape.classes for m in found] == [5, 7] and len(setting["commands"]) >= 1


def test_a_training_step_with_either_loss_is_measured(tmp_path):
    options = ["--network", "lenet", "--classes", "4", "--batch-size", "2", "--turns", "3", "--quiet"]
    result = CliRunner().invoke(app, ["bench", "step", *options, "--output", str(tmp_path)])
    assert result.exit_code == 0, result.output
    steps = json.loads((tmp_path / "step.json").read_text())["steps"]
    assert [(step["loss"], step["turns"]) for step in steps] == [("softmax", 3), ("cs-softmax", 3)]
    assert steps[0]["ratio"] == 1 and steps[1]["seconds"] > 0
    assert "| cs-softmax |" in (tmp_path / "step.md").read_text()


def test_a_network_that_does_not_exist_is_named(tmp_path):
    result = CliRunner().invoke(app, ["bench", "step", "--network", "tower", "--output", str(tmp_path)])
    assert result.exit_code == 1 and "'tower' is not one of" in result.output
