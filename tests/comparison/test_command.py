"""`cssoftmax compare`: what a person types, and what they read."""

import sys

import pytest

from cssoftmax import cli

FLAGS = ["--epochs", "1", "--width", "2", "--embedding-size", "4", "--batch-size", "64", "--cpu"]


@pytest.fixture
def command(monkeypatch, capsys):
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["cssoftmax", "compare", *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        read = capsys.readouterr()
        return caught.value.code, read.out, read.err

    return run


def test_a_table_a_conclusion_and_the_report_are_printed(command, tmp_path):
    code, out, err = command("digits", "--losses", "softmax,normface", "--seeds", 2, *FLAGS, "--output", tmp_path)
    assert code == 0
    assert "Accuracy: over 2 seeds, what sets normface" in out or "normface (" in out
    assert f"report: {tmp_path / 'comparison.md'}" in out
    assert "run normface-1: accuracy" in err and "4 trainings" in err
    assert (tmp_path / "comparison.png").exists() and (tmp_path / "comparison.json").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("digits", "--losses", "softmax,nope"), "--losses: 'nope' is not one of cs-softmax"),
        (("digits", "--losses", "softmax,,"), "alone has nothing"),
        (("digits", "--seeds", "0"), "--seeds"),
        (("digits", "--jobs", "-1"), "--jobs"),
        (("digits", "--protocol", "shut"), "--protocol"),
        (("digits", "--epochs", "0"), "--epochs: 0"),
        (("digits", "--network", "alexnet"), "--network: 'alexnet'"),
        (("no-such-folder",), "unknown data set"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(command, tmp_path, words, said):
    code, out, err = command(*words, "--output", tmp_path / "none")
    assert code != 0 and out == ""
    assert err.count("\n") == 1 and err.startswith("error: ") and said in err
    assert not (tmp_path / "none").exists()
