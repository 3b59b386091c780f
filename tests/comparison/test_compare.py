"""A comparison is fair, and one that was killed ends as one that was not."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cssoftmax import files, recipes, runs, training
from cssoftmax.comparison import ComparisonError, Watcher, compare, tuning
from cssoftmax.data import DataError
from cssoftmax.recipes import RecipeError

TINY = {"epochs": 1, "width": 2, "embedding_size": 4, "batch_size": 64}
FLAGS = ["--epochs", "1", "--width", "2", "--embedding-size", "4", "--batch-size", "64"]
PAIR = ("softmax", "cs-softmax")


def run(output, **changes):
    options = {"losses": PAIR, "seeds": 2, "tune": 2, "recipe_changes": TINY, "cpu": True} | changes
    return compare(runs.Source("digits"), output, **options)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    output = tmp_path_factory.mktemp("comparison") / "whole"
    run(output)
    return output


def test_one_seed_gives_every_loss_the_same_first_network_and_the_same_batches(tmp_path, monkeypatch):
    seen = {}
    fit = training.fit

    def watched(model, split, recipe, *, seed, **options):
        digest = hashlib.blake2b()
        for name, value in sorted(model.network.state_dict().items()):
            digest.update(name.encode() + value.numpy().tobytes())

        def add(module, inputs):
            if module.training:
                digest.update(inputs[0].contiguous().numpy().tobytes())

        handle = model.network.register_forward_pre_hook(add)
        trained = fit(model, split, recipe, seed=seed, **options)
        handle.remove()
        budget = (recipe.epochs, recipe.batch_size, len(split.target))
        seen.setdefault(seed, []).append((digest.hexdigest(), budget, type(model.loss).__name__))
        return trained

    monkeypatch.setattr(training, "fit", watched)
    run(tmp_path, losses=("softmax", "arcface", "cs-softmax"), tune=0)
    assert set(seen) == {0, 1}
    assert all(len({kind for _, _, kind in found}) == 3 for found in seen.values())
    assert all(len({(digest, budget) for digest, budget, _ in found}) == 1 for found in seen.values())
    assert seen[0][0][0] != seen[1][0][0]


def test_margins_rise_in_trials_and_in_runs(tmp_path, monkeypatch):
    seen = []
    fit = training.fit

    def watched(model, *arguments, **options):
        first = float(model.loss.margin)
        trained = fit(model, *arguments, **options)
        seen.append((first, float(trained.loss.margin)))
        return trained

    monkeypatch.setattr(training, "fit", watched)
    run(tmp_path, losses=("arcface", "cosface"), seeds=1, tune=1)
    assert torch.tensor(sorted(seen)).allclose(torch.tensor([(0.0, 0.35), (0.0, 0.35), (0.0, 0.5), (0.0, 0.5)]))


def test_what_is_written_says_how_it_was_made(uninterrupted):
    result = json.loads((uninterrupted / "comparison.json").read_text())
    assert (result["trials"], result["runs"], result["epochs"], result["seeds"]) == (4, 4, 1, [0, 1])
    assert result["command"] == (
        "cssoftmax compare digits --losses softmax,cs-softmax --protocol closed --seeds 2 --tune 2 "
        "--epochs 1 --width 2 --embedding-size 4 --batch-size 64 --cpu"
    )
    lines = [json.loads(line) for line in (uninterrupted / "trials.jsonl").read_text().splitlines()]
    for loss in PAIR:
        scores = {line["number"]: line["score"] for line in lines if line["loss"] == loss}
        assert scores.keys() == {0, 1}
        assert all(0 < line["tie_break"] < 1 for line in lines)
        samples = 250  # a fifth of each class of 1,258
        errors = {line["number"]: line["standard_error"] for line in lines if line["loss"] == loss}
        assert errors == pytest.approx({n: (score * (1 - score) / samples) ** 0.5 for n, score in scores.items()})
        best = tuning.best([line for line in lines if line["loss"] == loss])
        assert result["settings"][loss][0]["validation_score"] == best["score"]
        assert result["settings"][loss][0]["lr"] == best["values"]["lr"] * recipes.choose("digits", "image").lr
        config = json.loads((uninterrupted / "runs" / f"{loss}-1" / "config.json").read_text())
        assert config["recipe"]["lr"] == result["settings"][loss][0]["lr"]
    epochs = [json.loads(line) for line in (uninterrupted / "runs/softmax-1/metrics.jsonl").read_text().splitlines()]
    assert [epoch.keys() >= {"train_loss", "eval_loss"} for epoch in epochs] == [False]  # the last epoch alone counts
    summary = json.loads((uninterrupted / "runs" / "softmax-1" / "summary.json").read_text())
    assert summary["measures"]["accuracy"] == result["measures"]["accuracy"]["softmax"]["values"][1]


def test_a_comparison_killed_in_two_processes_ends_as_one_never_interrupted_in_one(tmp_path, uninterrupted):
    output = tmp_path / "killed"
    words = [sys.executable, "-m", "cssoftmax", "compare", "digits", "--losses", ",".join(PAIR), "--seeds", "2"]
    words += ["--tune", "2", "--cpu", "--jobs", "2", "--output", str(output), "--quiet", *FLAGS]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    trials, runs = output / "trials.jsonl", output / "runs.jsonl"
    while not (runs.exists() and runs.read_text().endswith("\n")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children):
        assert time.monotonic() < deadline, "a training outlived the command that was killed"
        time.sleep(0.02)
    assert not (output / "comparison.json").exists()
    with runs.open("a") as file:
        file.write('{"loss": "softm')  # the line that was being written

    run(output)
    assert (output / "comparison.json").read_bytes() == (uninterrupted / "comparison.json").read_bytes()
    assert sorted(trials.read_text().splitlines()) == sorted((uninterrupted / "trials.jsonl").read_text().splitlines())
    assert list((output / "trials").iterdir()) == []


def test_what_is_done_is_not_done_again_and_losses_and_seeds_may_be_added(tmp_path, monkeypatch):
    first = run(tmp_path, tune=0, seeds=1)
    told = []
    again = run(tmp_path, tune=0, seeds=1, watcher=Watcher(on_line=told.append))
    assert told == [] and again == first
    more = run(tmp_path, tune=0, seeds=1, losses=(*PAIR, "normface"), watcher=Watcher(on_line=told.append))
    assert [line.split(":")[0] for line in told] == ["run normface-0"]
    assert more["measures"]["accuracy"]["softmax"] == first["measures"]["accuracy"]["softmax"]
    told.clear()
    grown = run(tmp_path, tune=0, seeds=2, losses=(*PAIR, "normface"), watcher=Watcher(on_line=told.append))
    assert sorted(line.split(":")[0] for line in told) == [
        f"run {loss}-1" for loss in ("cs-softmax", "normface", "softmax")
    ]
    assert grown["seeds"] == [0, 1]


def test_a_comparison_older_than_a_setting_of_recipes_goes_on_with_that_off(tmp_path):
    run(tmp_path, tune=0, seeds=1)
    path = tmp_path / "settings.json"
    settings = json.loads(path.read_text())
    del settings["recipe"]["muon_lr"]
    path.write_text(json.dumps(settings))
    with pytest.raises(ComparisonError, match="muon_lr: 0.1, but .* with 0.0"):
        run(tmp_path, tune=0, seeds=1, recipe_changes=TINY | {"muon_lr": 0.1})
    told = []
    run(tmp_path, tune=0, seeds=1, watcher=Watcher(on_line=told.append))
    assert told == []


def test_a_comparison_from_before_a_default_changed_is_not_gone_on_with(tmp_path):
    run(tmp_path, tune=0, seeds=1)
    path = tmp_path / "settings.json"
    settings = json.loads(path.read_text())
    settings["defaults"]["cs-softmax"]["scale"] = 12.35
    path.write_text(json.dumps(settings))
    with pytest.raises(ComparisonError, match=r"cs-softmax: its default scale is [0-9.]+, but .* with 12.35"):
        run(tmp_path, tune=0, seeds=2)
    del settings["defaults"]
    path.write_text(json.dumps(settings))
    told = []
    run(tmp_path, tune=0, seeds=1, watcher=Watcher(on_line=told.append))
    assert told == [] and json.loads(path.read_text())["defaults"]["cs-softmax"]["scale"] != 12.35


def test_an_interruption_says_that_the_same_command_goes_on(tmp_path, monkeypatch):
    fit, fits = training.fit, []

    def interrupted(*arguments, **options):
        fits.append(options["seed"])
        if len(fits) == 2:
            raise KeyboardInterrupt
        return fit(*arguments, **options)

    monkeypatch.setattr(training, "fit", interrupted)
    with pytest.raises(training.Interrupted, match=f"saved in {tmp_path}; the same command goes on"):
        run(tmp_path, seeds=1, tune=0)
    assert run(tmp_path, seeds=1, tune=0)["runs"] == 2 and len(fits) == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": 1}, "seeds: 1 are fewer than the 2 of the comparison in"),
        ({"tune": 3}, "tune: 3"),
        ({"recipe_changes": TINY | {"epochs": 2}}, "epochs: 2, but .* with 1"),
        ({"protocol": "open"}, "protocol: open"),
        ({"losses": ("softmax", "cosface")}, "losses: cs-softmax is part"),
    ],
)
def test_another_setting_is_refused_in_the_folder_of_a_comparison(uninterrupted, changes, words):
    before = (uninterrupted / "settings.json").read_bytes()
    with pytest.raises((ComparisonError, DataError), match=words):
        run(uninterrupted, **changes)
    assert (uninterrupted / "settings.json").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"losses": ("softmax", "sofmax")}, "losses: 'sofmax' is not one of"),
        ({"losses": ("softmax", "softmax")}, "named twice"),
        ({"losses": ("softmax",)}, "alone"),
        ({"losses": ()}, "none given"),
        ({"protocol": "shut"}, "protocol: 'shut' is not one of closed, open, verification"),
        ({"seeds": 0}, "seeds: 0"),
        ({"tune": -1}, "tune: -1"),
        ({"processes": 0}, "jobs: 0"),
        ({"amp": "fp8"}, "amp: 'fp8'"),
        ({"recipe_changes": {"epochs": 0}}, "epochs"),
        ({"recipe_changes": {"network": "alexnet"}}, "alexnet"),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_is_written(tmp_path, changes, words):
    with pytest.raises((ComparisonError, RecipeError, runs.JobError), match=words) as caught:
        run(tmp_path / "none", **changes)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "none").exists()


def test_two_commands_do_not_share_a_folder(tmp_path):
    with files.only_one(tmp_path), pytest.raises(files.InUse, match="another command writes to this folder"):
        run(tmp_path)


@pytest.mark.parametrize("protocol", ["verification", "open"])
def test_a_protocol_measures_what_makes_sense_in_it(tmp_path, use_data, protocol):
    use_data()
    result = run(tmp_path, protocol=protocol, seeds=1, tune=1)
    keys = set(result["measures"])
    if protocol == "verification":
        assert not keys & {"accuracy", "top5_accuracy", "nll", "ece", "knn_accuracy", "unknown_auroc_cosine"}
        # Two held-out classes of four test samples each.
        assert result["measures"]["verification_pairs"]["softmax"]["mean"] == 8 * 7 / 2
    else:
        assert {"unknown_auroc_cosine", "unknown_auroc_probability", "accuracy"} <= keys
        assert result["measures"]["verification_pairs"]["softmax"]["mean"] == 32 * 31 / 2
    assert set(result["headlines"]) <= keys
    assert len(result["held_out_classes"]) == 2


def test_rotations_are_averaged_seed_by_seed(tmp_path, use_data):
    use_data(speakers="as folds")
    result = run(tmp_path, seeds=1, tune=0)
    assert result["groups"] == ["0", "1", "2", "3"] and result["runs"] == 8
    lines = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    accuracies = [line["measures"]["accuracy"] for line in lines if line["loss"] == "softmax"]
    assert result["measures"]["accuracy"]["softmax"]["values"] == [pytest.approx(sum(accuracies) / 4)]


def test_tuning_is_blind_to_the_test_split(tmp_path, use_data, noise):
    def trials_of(folder):
        run(folder, seeds=1)
        return (folder / "trials.jsonl").read_text(), (folder / "runs.jsonl").read_text()

    def poison(dataset):
        everything = torch.ones(len(dataset.test.target), dtype=torch.bool)
        return replace(dataset, test=replace(noise(dataset.test, everything), target=dataset.test.target.flip(0)))

    use_data()
    honest = trials_of(tmp_path / "honest")
    use_data(poison=poison)
    poisoned = trials_of(tmp_path / "poisoned")
    assert honest[0] == poisoned[0] and honest[1] != poisoned[1]


def test_a_trial_that_diverges_scores_nothing_and_a_run_that_does_is_named(tmp_path, monkeypatch):
    fit = training.fit

    def diverging(model, split, recipe, **options):
        if type(model.loss).__name__ == "CSSoftmaxLoss" and recipe.lr != pytest.approx(0.1):
            raise training.Diverged("lr: the loss became nan")
        return fit(model, split, recipe, **options)

    monkeypatch.setattr(training, "fit", diverging)
    run(tmp_path / "tuned", seeds=1)
    lines = [json.loads(line) for line in (tmp_path / "tuned" / "trials.jsonl").read_text().splitlines()]
    failed = [line for line in lines if "failed" in line]
    assert [(line["loss"], line["number"], line["score"]) for line in failed] == [("cs-softmax", 1, 0.0)]
    with pytest.raises(ComparisonError, match="run cs-softmax-0: lr: the loss became nan"):
        run(tmp_path / "plain", seeds=1, tune=0, recipe_changes=TINY | {"lr": 0.2})
