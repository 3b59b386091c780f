"""A run is read whole, or one line says which file is wrong, how, and what to do."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from cssoftmax.report import RunError, load_run
from cssoftmax.report.run import labels


def test_a_run_is_what_its_files_hold(make_run):
    run = load_run(make_run(classes=4, size=8, samples=120))
    assert run.classes == ["class 0", "class 1", "class 2", "class 3"]
    assert run.embeddings.shape == (120, 8) and run.logits.shape == (120, 4) and run.class_weights.shape == (4, 8)
    assert [epoch["epoch"] for epoch in run.history] == [1, 2, 3]
    assert run.summary["measures"]["accuracy"] == 0.9


def complain(folder):
    with pytest.raises(RunError) as caught:
        load_run(folder)
    message = str(caught.value)
    assert "\n" not in message and str(folder) in message
    return message


def test_no_folder(tmp_path):
    assert "no such folder" in complain(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("file", "remedy"),
    [
        ("config.json", "train anew"),
        ("metrics.jsonl", "train anew"),
        ("summary.json", "cssoftmax evaluate"),
        ("evaluation.safetensors", "cssoftmax evaluate"),
    ],
)
def test_a_missing_or_damaged_file(make_run, file, remedy):
    folder = make_run()
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: len(content) - 20])
    message = complain(folder)
    assert file in message and "damaged" in message and remedy in message
    (folder / file).unlink()
    message = complain(folder)
    assert f"{file}: missing" in message and remedy in message


def test_a_training_that_did_not_end_is_to_be_resumed(make_run):
    folder = make_run()
    (folder / "summary.json").unlink()
    (folder / "weights.safetensors").unlink()
    assert f"--resume {folder}" in complain(folder)


@pytest.mark.parametrize("text", ["[1]", '{"source": "digits"}', '{"source": 3, "loss": {}, "recipe": {}}'])
def test_a_config_that_is_another_thing(make_run, text):
    folder = make_run()
    (folder / "config.json").write_text(text)
    assert "config.json" in complain(folder)


def test_a_damaged_line_of_metrics_is_named_by_its_number(make_run):
    folder = make_run()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "train_lo')
    assert "metrics.jsonl, line 4" in complain(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("logits"), "logits is missing"),
        (lambda t: t.update(logits=t["logits"][:, :2].clone()), "shapes do not fit the 4 classes"),
        (lambda t: t.update(target=t["target"] + 1), "target is not in 0..3"),
        (lambda t: t.update(embeddings=t["embeddings"] / 0), "not finite"),
        (lambda t: t.update(embeddings=torch.zeros(0, 8)), "no embeddings"),
    ],
)
def test_tensors_that_do_not_fit(make_run, change, words):
    path = make_run() / "evaluation.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    assert words in complain(path.parent)


def test_labels_tell_runs_apart(make_run, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    runs = [load_run(make_run(name)) for name in ("a/run", "b/run", "a/other")]
    assert labels(runs[::2]) == ["run", "other"]
    assert labels(runs) == ["a/run", "b/run", "a/other"]
    assert labels([runs[0], runs[0]]) == ["run (1)", "run (2)"]


def test_a_source_may_be_a_name_alone(make_run):
    path = make_run() / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"source": "mnist"}))
    assert load_run(path.parent).config["source"] == "mnist"
