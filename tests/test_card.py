"""What a run's model card says, whatever its classes are called."""

import copy
import json

import pytest
import yaml

from cssoftmax import jobs
from cssoftmax.card import model_card
from cssoftmax.runs import Source


@pytest.fixture
def run(make_photos, tmp_path):
    changes = {"width": 2, "embedding_size": 4, "epochs": 1, "batch_size": 8}
    source = Source(str(make_photos()), cache_dir=tmp_path / "cache", validation=0.25)
    return jobs.train(source, tmp_path / "run", recipe_changes=changes, loss_settings={"margin": [0.1, 0.2]})


def read(run):
    return (json.loads((run / name).read_text()) for name in ("config.json", "summary.json"))


def test_every_run_has_a_card_with_its_measures_and_how_to_use_it(run):
    card, (config, summary) = (run / "README.md").read_text(), read(run)
    assert card == model_card(config, summary)
    _, header, body = card.split("---\n", 2)
    fields = yaml.safe_load(header)
    assert (fields["library_name"], fields["pipeline_tag"]) == ("cssoftmax", "image-classification")
    (result,) = fields["model-index"][0]["results"]
    assert result["dataset"]["split"] == "validation"
    assert result["metrics"][0]["value"] == summary["measures"]["accuracy"]
    assert "On the validation split of photos, held out of the training split" in body
    assert "| EER |" in body and "margin one per class, 0.1 to 0.2" in body and "- classes: day, night" in body
    assert "nan" not in body


def test_names_from_data_cannot_break_it(run):
    config, summary = map(copy.deepcopy, read(run))
    evil = "</td><script>alert(1)</script>\n---\n| # `x` [a](b)"
    config["classes"] = [evil, 'quote " and : colon']
    config["dataset"] = evil
    card = model_card(config, summary)
    fields = yaml.safe_load(card.split("\n---\n")[0].removeprefix("---\n"))
    assert fields["model-index"][0]["results"][0]["dataset"]["name"] == evil
    body = card.split("\n---\n", 1)[1]
    assert "<script" not in body and "\n---" not in body and "\\[a\\](b)" in body
