"""The commands around a trained model, as a person meets them."""

import json
import sys
from pathlib import Path

import pytest

from cssoftmax import cli, jobs
from cssoftmax.data import progress
from cssoftmax.embedder import Embedder
from cssoftmax.runs import Source


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("CSSOFTMAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CSSOFTMAX_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def command(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["cssoftmax", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def run(make_photos, tmp_path):
    make_photos()
    changes = {"network": "lenet", "width": 4, "embedding_size": 8, "epochs": 20, "batch_size": 4, "lr": 0.05}
    return jobs.train(Source("photos"), tmp_path / "run", recipe_changes=changes)


def test_predict_says_class_and_cosine_and_where_the_threshold_is_from(command, run):
    code, out, err = command("predict", "run", "photos/day/0.png", "photos/night/0.png", "--far", "0.5")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["file", "class", "cosine", "nearest"]
    assert [line[0] for line in lines[1:]] == ["photos/day/0.png", "photos/night/0.png"]
    assert [line[3] for line in lines[1:]] == ["day", "night"]
    assert "false acceptance rate 50 % of " in err and "blends of two classes of the test split" in err
    code, out, err = command("predict", "run", "photos/day", "--json", "--far", "0.01")
    rows = json.loads(out)
    assert (code, len(rows), set(rows[0])) == (0, 12, {"file", "class", "nearest", "cosine", "threshold"})
    assert all((row["class"] is None) == (row["cosine"] < row["threshold"]) for row in rows)
    code, out, err = command("predict", "run", "photos/day", "--quiet")
    assert (code, err) == (0, "")
    code, out, err = command("predict", "run", "photos/day/0.png", "--unknown", "photos/night", "--far", "0.01")
    assert "1 % of 12 samples that were given as unknown" in err and "12 are too few to hold 1 %" in err


def test_verify_answers_by_its_exit_code_too(command, run):
    same, out, _ = command("verify", "run", "photos/day/0.png", "photos/day/0.png")
    assert same == 0 and out.startswith("same: cosine 1.000, at least ")
    pairs = [(f"photos/day/{i}.png", f"photos/night/{j}.png") for i in range(12) for j in range(12)]
    embedder = Embedder.load(run)
    days, nights = (embedder.embed([f"photos/{name}/{i}.png" for i in range(12)]) for name in ("day", "night"))
    pair = pairs[int((days @ nights.T).argmin())]
    different, out, err = command("verify", "run", *pair, "--quiet")
    assert (different, err) == (3, "") and out.startswith("different: cosine ")
    code, out, _ = command("verify", "run", *pair, "--json")
    assert code == 3 and json.loads(out)["same"] is False


def test_embed_and_search(command, run):
    code, out, err = command("embed", "run", "photos", "-o", "photos.parquet", "--quiet")
    assert (code, out, err) == (0, "embeddings: photos.parquet (24 of 8 numbers)\n", "")
    code, out, _ = command("search", "run", "photos/day/3.png", "--in", "photos.parquet", "-n", "2")
    assert code == 0 and len(out.splitlines()) == 3
    assert out.splitlines()[1].split()[1] == "day" and out.splitlines()[1].split()[2] == "1.000"
    code, out, _ = command("search", "run", "photos/day/3.png", "--in", "photos.parquet", "--json")
    assert len(json.loads(out)) == 5
    code, out, _ = command("embed", "run", "photos/day", "-o", "day.parquet", "--json")
    assert json.loads(out)["samples"] == 12


def test_enroll_and_export(command, run):
    code, out, _ = command("enroll", "run", "dusk", "photos/day/0.png", "photos/night/0.png")
    assert (code, out) == (0, "enrolled: dusk, from 2 examples; 3 classes\n")
    assert command("enroll", "run", "dusk", "photos/day/0.png")[1].startswith("enrolled anew: dusk, from one example")
    assert json.loads(command("predict", "run", "photos/day/0.png", "--json")[1])[0]["nearest"] == "dusk"
    code, out, err = command("export", "run", "--format", "safetensors")
    assert (code, err) == (0, "") and out.startswith("exported: run/model.safetensors (largest difference to PyTorch 0")
    (row,) = json.loads(command("predict", "run/model.safetensors", "photos/day/0.png", "--json")[1])
    assert row["nearest"] == "dusk"
    assert command("enroll", "run/model.safetensors", "dawn", "photos/night/1.png")[0] == 0
    assert json.loads(command("export", "run", "--format", "safetensors", "--json")[1])["difference"] == 0


MISTAKES = {
    ("predict", "run", "nowhere.png"): "nowhere.png: no such file",
    ("predict", "photos", "photos/day/0.png"): "photos: no run here",
    ("predict", "run", "run"): "run: no images or sounds in this folder",
    ("predict", "run", "photos/day/0.png", "--far", "2"): "--far: expected a rate from 0 to 1, got 2.0",
    ("enroll", "run", "day", "photos/day/0.png"): "'day' is a class that was trained on",
    ("search", "run", "photos/day/0.png", "--in", "missing.parquet"): "missing.parquet: no such file",
    ("embed", "run", "nothing"): "unknown data set 'nothing'",
    ("embed", "run", "photos", "-o", "photos/day/0.png"): "photos/day/0.png: is not a file of embeddings",
    ("export", "photos"): "photos: no run here",
}


def test_a_mistake_is_one_line(command, run, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    for arguments, message in MISTAKES.items():
        code, out, err = command(*arguments)
        assert (code, out, err.count("\n")) == (1, "", 1), arguments
        assert err.startswith("error: ") and message in err, arguments
    assert sorted(tmp_path.rglob("*")) == before


def test_every_command_has_an_example(command):
    commands = [line.split()[0] for line in command()[1].partition("Commands:\n")[2].splitlines() if line[2:3] != " "]
    assert len(commands) >= 12
    for name in commands:
        names = (name, "head") if name == "bench" else (name,)
        code, text, _ = command(*names, "--help")
        assert code == 0 and f"cssoftmax {' '.join(names)}" in text.partition("Example")[2], name
        assert "--quiet" in text and "--json" in text, name


def test_quiet_silences_the_decoding_too(command, make_photos, monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", -1.0)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    make_photos()
    tiny = ["--epochs", "1", "--width", "2", "--embedding-size", "4", "--batch-size", "8"]
    loud = command("train", "photos", *tiny, "-o", "loud")[2]
    Path("photos").rename("pictures")
    assert "decoding" in loud
    assert command("train", "pictures", *tiny, "-o", "silent", "--quiet")[2] == ""


def test_the_shell_completes_commands_and_options(command, monkeypatch):
    def complete(words):
        monkeypatch.setenv("_CSSOFTMAX_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
        code, out, _ = command()
        assert code == 0
        return out.split()

    assert complete("cssoftmax en") == ["enroll"]
    assert "--losses" in complete("cssoftmax compare --lo")
