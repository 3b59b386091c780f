"""The comparisons in results/: what they say is what their lines say, and every run has its best trial's settings."""

import json
from pathlib import Path

import pytest

from cssoftmax.comparison import tuning
from cssoftmax.comparison.outcome import outcome

COMPARISONS = sorted((Path(__file__).parents[2] / "results" / "comparisons").glob("*/comparison.json"))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: path.parent.name)
def test_it_says_what_its_lines_say(path):
    said, folder = json.loads(path.read_text()), path.parent
    settings = json.loads((folder / "settings.json").read_text())
    again = outcome(settings, {}, lines(folder / "trials.jsonl"), lines(folder / "runs.jsonl"))
    for key in ("losses", "seeds", "trials", "measures", "differences", "settings"):
        assert json.loads(json.dumps(again[key])) == said[key], key


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: path.parent.name)
def test_every_run_has_the_settings_of_the_best_trial(path):
    folder = path.parent
    settings = json.loads((folder / "settings.json").read_text())
    trials = lines(folder / "trials.jsonl")
    for run in lines(folder / "runs.jsonl"):
        own = [trial for trial in trials if (trial["loss"], trial["group"]) == (run["loss"], run["group"])]
        assert len(own) == settings["tune"]
        values = tuning.best(own)["values"]
        assert run["lr"] == pytest.approx(settings["recipe"]["lr"] * values["lr"])
        own_settings = {name: value for name, value in values.items() if name not in ("lr", "scale")}
        assert {name: run["settings"][name] for name in own_settings} == pytest.approx(own_settings)
