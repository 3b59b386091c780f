"""The command as a person meets it: what it prints, and where, and its exit code."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import typer
from rich.console import Console

from cssoftmax import __version__, cli, jobs, processor, training
from cssoftmax.cli import console

TINY = ["--epochs", "2", "--width", "2", "--embedding-size", "8", "--batch-size", "8"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("CSSOFTMAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CSSOFTMAX_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs the command in this process: its exit code, standard output and standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["cssoftmax", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code, *capsys.readouterr()

    return run


def start(*arguments):
    """The command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "cssoftmax", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def test_train_evaluate_and_report_print_the_measures_a_line_each(command, make_photos, tmp_path):
    photos = make_photos()
    code, out, err = command("train", photos, *TINY)
    lines = out.splitlines()
    assert code == 0
    assert lines[0].split() == ["measure", "photos-cs-softmax-0"]
    assert any(line.startswith("Angle to own class centre, std over classes  ") for line in lines)
    assert len(lines) == 18
    assert len({len(line) for line in lines[:-1]}) == 1
    assert lines[-1] == "report: runs/photos-cs-softmax-0/report.html"
    assert (tmp_path / "runs/photos-cs-softmax-0/report.html").exists()
    assert err.splitlines()[0].startswith("photos: 20 training and 4 evaluation samples, 2 classes; resnet9")
    assert [line.split()[:2] for line in err.splitlines()[1:]] == [["epoch", "1/2"], ["epoch", "2/2"]]

    again, same, nothing = command("evaluate", "runs/photos-cs-softmax-0")
    assert (again, same, nothing) == (0, out, "")
    found = json.loads(command("evaluate", "runs/photos-cs-softmax-0", "--json")[1])
    assert found["report"] == "runs/photos-cs-softmax-0/report.html"
    assert 0 <= found["runs"][0]["measures"]["accuracy"] <= 1

    code, _, err = command("train", photos, *TINY, "--loss", "softmax", "-o", "plain", "--quiet")
    assert (code, err) == (0, "")
    code, out, err = command("report", "plain", "runs/photos-cs-softmax-0", "-o", "both")
    assert (code, err) == (0, "")
    assert out.split()[:3] == ["measure", "plain", "photos-cs-softmax-0"]
    assert out.splitlines()[-1] == "report: both/report.html"


def test_a_terminal_sees_a_bar_with_the_time_left(command, make_photos, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=screen, force_terminal=True, width=120, highlight=False))
    code, _, _ = command("train", make_photos(), *TINY)
    assert code == 0
    for words in ("training", "/4 steps", "left", "epoch 2/2", "measuring", "drawing the report"):
        assert words in screen.getvalue()


def test_help_has_examples_and_the_version_is_that_of_the_package(command):
    assert command("--version") == (0, __version__ + "\n", "")
    code, out, _ = command("--help")
    assert (code, command()[1]) == (0, out)
    for name in ("train", "evaluate", "report"):
        assert name in out
        code, text, _ = command(name, "--help")
        assert code == 0
        assert f"cssoftmax {name}" in text.partition("Example")[2]


def test_help_waits_for_no_library_that_it_does_not_need():
    late = {
        "sklearn",
        "scipy",
        "pandas",
        "matplotlib",
        "datasets",
        "librosa",
        "kornia",
        "optuna",
        "plotly",
        "onnxruntime",
    }
    code = f"import sys, cssoftmax.cli; print({late} & sys.modules.keys())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


MISTAKES = {
    ("train", "--loss", "hinge"): "--loss: 'hinge' is not one of cs-softmax, softmax",
    ("train", "--network", "vgg"): "--network: 'vgg' is not one of lenet",
    ("train", "--margin", "1.5"): "--margin: 1.5 is outside [0, 1)",
    ("train", "--margin", "-0.1"): "--margin: -0.1 is outside [0, 1)",
    ("train", "--margin", "nan"): "--margin: nan is outside [0, 1)",
    ("train", "--scale", "0"): "--scale: 0.0 is not a finite number > 0",
    ("train", "--weight-update", "2"): "--weight-update: 2.0 is outside [0, 1]",
    ("train", "--loss", "circle", "--relaxation", "0.6"): "--relaxation: 0.6 is outside (0, 0.5]",
    ("train", "--loss", "softmax", "--margin", "0.2"): "--margin: softmax has no such setting",
    ("train", "--relaxation", "0.2"): "--relaxation: cs-softmax has no such setting; it has",
    ("train", "--epochs", "0"): "--epochs: 0 is not a whole number in 1..100000",
    ("train", "--batch-size", "1"): "--batch-size: 1 is not a whole number in 2..",
    ("train", "--embedding-size", "0"): "--embedding-size: 0 is not",
    ("train", "--lr", "0"): "--lr: 0 trains nothing; give a positive number",
    ("train", "--lr", "nan"): "--lr: nan is not a number in [0, 1000)",
    ("train", "--warmup", "1"): "--warmup: 1.0 is not a number in [0, 1)",
    ("train", "--ema", "1"): "--ema: 1.0 is not a number in [0, 1)",
    ("train", "--validation", "1"): "--validation: 1.0 is outside [0, 1)",
    ("train", "--stream", "--shuffle-buffer", "0", "empty"): "--shuffle-buffer 0: must be at least 1 sample",
    ("train", "--shuffle-buffer", "9"): "--shuffle-buffer: is for samples that are streamed; add --stream",
    ("train", "--image-size", "0"): "--image-size 0: must be at least 1 pixel",
    ("train", "--image-size", "1"): "--network: lenet with this augmentation does not take inputs of 1 x 1 x 1",
    ("train", "--low-resolution", "1"): "--low-resolution: 1.0 is not a number in [0, 1)",
    ("train", "--test-group", "5"): "--test-group 5: unknown; digits has no groups",
    ("train", "nothing"): "unknown data set 'nothing': not one of digits, mnist",
    ("train", "mnist", "--data-root", "missing"): "--data-root missing: no such folder",
    ("train", "empty"): "empty: no class folders; put the images or sounds into one subfolder per class",
    ("train", "hollow"): "hollow/b: no images or sounds in this class folder; fill it or remove it",
    ("train", "corrupt"): "corrupt/night/3.png: cannot be decoded",
    ("train", "--output", "file"): "file: cannot be written (File exists)",
    ("train", "--resume", "missing"): "missing: no run here, config.json is missing; `cssoftmax train` makes one",
    ("train", "--resume", "missing", "--epochs", "5"): "--epochs: --resume goes on with the settings",
    ("train", "digits", "--resume", "missing"): "SOURCE: --resume goes on with the settings",
    ("evaluate", "corrupt"): "corrupt: no run here, config.json is missing",
    ("report", "missing"): "missing: no such folder; name one that `cssoftmax train` wrote",
}
USAGE = {
    ("train", "--amp", "foo"): "--amp",
    ("train", "--epochs", "many"): "--epochs",
    ("train", "--schedule", "linear"): "--schedule",
    ("train", "--seed", "-1"): "--seed",
    ("train", "--netwrok", "lenet"): "--netwrok",
    ("evaluate",): "RUN",
    ("trian",): "trian",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(command, make_photos, tmp_path, arguments):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for name in ("a", "b"):
        (tmp_path / "hollow" / name).mkdir(parents=True)
    (tmp_path / "hollow/a/1.png").write_bytes(b"")
    if "corrupt" in arguments:
        (make_photos("corrupt") / "night/3.png").write_bytes(b"not an image")
    before = sorted(tmp_path.rglob("*"))
    code, out, err = command(*arguments)
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {MISTAKES[arguments]}")
    assert err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("arguments", USAGE)
def test_a_mistake_of_usage_is_one_line_and_code_2(command, tmp_path, arguments):
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and USAGE[arguments] in err and "--help`" in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_mistakes_with_a_run_are_one_line_too(command, make_photos, tmp_path):
    photos = make_photos()
    assert command("train", photos, *TINY, "-o", "run")[0] == 0
    weights = tmp_path / "run/weights.safetensors"
    for arguments, message in (
        (("train", photos, *TINY, "-o", "run"), "run: there is a run in this folder"),
        (("train", "--resume", "run"), "run: this run is complete"),
    ):
        code, out, err = command(*arguments)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert err.startswith(f"error: {message}")
    weights.write_bytes(weights.read_bytes()[:-100])
    code, _, err = command("evaluate", "run")
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("error: run/weights.safetensors: these weights cannot be loaded")
    (tmp_path / "run/summary.json").unlink()
    (tmp_path / "run/checkpoint.safetensors").write_bytes(b"damaged")
    code, _, err = command("train", "--resume", "run")
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("error: run/checkpoint.safetensors: damaged")


def test_a_full_disk_is_one_line(command, make_photos, monkeypatch):
    def full(descriptor):
        raise OSError(28, os.strerror(28))

    photos = make_photos()
    monkeypatch.setattr(os, "fsync", full)
    code, _, err = command("train", photos, *TINY, "--quiet", "-o", "run")
    assert code == 1
    assert err == (
        "error: run/config.json: cannot be written (No space left on device); free the disk, or choose another folder\n"
    )


def test_memory_that_runs_out_is_one_line_and_a_fault_of_ours_is_not(command, monkeypatch):
    def fail(text):
        def train(*args, **kwargs):
            raise RuntimeError(text)

        monkeypatch.setattr(jobs, "train", train)

    fail("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
    code, _, err = command("train")
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("error: not enough memory") and "lower --batch-size" in err and "or add --stream" in err
    fail("a bug")
    monkeypatch.setattr(sys, "argv", ["cssoftmax", "train"])
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main()


@pytest.mark.parametrize(("slowdown", "lines"), [(30.0, 1), (0.5, 0)])
def test_bfloat16_warns_only_where_it_is_emulated(command, make_photos, monkeypatch, slowdown, lines):
    monkeypatch.setattr(processor, "bfloat16_slowdown", lambda: slowdown)
    code, _, err = command("train", make_photos(), *TINY, "--amp", "bf16", "--quiet")
    assert code == 0
    assert err.count("\n") == lines
    if lines:
        assert err.startswith("warning: --amp bf16: this processor only emulates bfloat16")
        assert "30 times as long" in err


def test_ctrl_c_stops_after_saving_and_resume_ends_with_the_same_weights(command, tmp_path):
    settings = ["train", "digits", *TINY, "--ema", "0.9", "--mixup", "0.2", "--quiet"]
    stopped = start(*settings, "-o", "stopped")
    wait_for(tmp_path / "stopped/metrics.jsonl", stopped)
    stopped.send_signal(signal.SIGINT)
    out, err = stopped.communicate(timeout=60)
    assert (stopped.returncode, out) == (130, "")
    assert err.startswith("interrupted: stopped after step ")
    assert err.endswith("of 314; `cssoftmax train --resume stopped` goes on\n")
    assert command("train", "--resume", "stopped", "--quiet")[0] == 0
    assert command(*settings, "-o", "whole")[0] == 0
    assert (tmp_path / "stopped/weights.safetensors").read_bytes() == (
        tmp_path / "whole/weights.safetensors"
    ).read_bytes()


def test_a_killed_training_resumes_with_the_same_weights(command, tmp_path):
    settings = ["train", "digits", *TINY, "--quiet"]
    killed = start(*settings, "-o", "killed")
    wait_for(tmp_path / "killed/metrics.jsonl", killed)
    killed.kill()
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert command("train", "--resume", "killed", "--quiet")[0] == 0
    assert command(*settings, "-o", "whole")[0] == 0
    both = [tmp_path / name for name in ("killed", "whole")]
    assert len({(folder / "weights.safetensors").read_bytes() for folder in both}) == 1
    assert [len((folder / "metrics.jsonl").read_text().splitlines()) for folder in both] == [2, 2]
    assert len({json.dumps(json.loads((folder / "summary.json").read_text())["measures"]) for folder in both}) == 1
    assert len({tuple(sorted(path.name for path in folder.iterdir())) for folder in both}) == 1


def test_of_several_processes_the_first_speaks_and_another_only_if_it_is_not_ended_meanwhile(monkeypatch, capsys):
    @console.explained
    def command(error):
        raise error

    waited = []
    monkeypatch.setattr(console.time, "sleep", waited.append)
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        for error in (ValueError("photo.png: damaged"), training.Interrupted("after step 3")):
            with pytest.raises(typer.Exit):
                command(error)
    told = ["error: photo.png: damaged", "interrupted: after step 3", "rank 1: error: photo.png: damaged"]
    assert capsys.readouterr().err.splitlines() == told
    assert waited == [console.PATIENCE]
