"""What trackers are told: every epoch, the final measures, and the embeddings."""

import pytest

from cssoftmax import jobs
from cssoftmax.runs import Source
from cssoftmax.trackers import TrackError
from cssoftmax.watcher import Watcher

TINY = {"width": 2, "embedding_size": 4, "epochs": 2, "batch_size": 8}


def scalars(run):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = event_accumulator.EventAccumulator(str(run / "cssoftmax"))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def epochs(run):
    import json

    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_tensorboard_is_told_every_epoch_and_shows_embeddings_with_their_pictures(make_photos, tmp_path):
    pytest.importorskip("tensorboard")
    source = Source(str(make_photos()), cache_dir=tmp_path / "cache")
    run = jobs.train(source, tmp_path / "run", recipe_changes=TINY, track=["tensorboard"])
    found = scalars(run)
    for name in ("train_loss", "eval_accuracy"):
        assert found[name] == [(line["epoch"], pytest.approx(line[name])) for line in epochs(run)]
    assert found["final/accuracy"][0][0] == 2
    (projector,) = run.rglob("projector_config.pbtxt")
    (tensors,), (labels,) = run.rglob("tensors.tsv"), run.rglob("metadata.tsv")
    assert len(tensors.read_text().splitlines()) == 4
    assert sorted(labels.read_text().split()) == ["day", "day", "night", "night"]
    assert list(run.rglob("sprite.png")) and "sprite" in projector.read_text()


def test_sounds_are_projected_without_pictures(tones, tmp_path):
    pytest.importorskip("tensorboard")
    source = Source(str(tones), cache_dir=tmp_path / "cache")
    run = jobs.train(source, tmp_path / "run", recipe_changes=TINY, track=["tensorboard"])
    assert list(run.rglob("tensors.tsv")) and not list(run.rglob("sprite.png"))


def test_a_resumed_run_goes_on_telling(make_photos, tmp_path):
    pytest.importorskip("tensorboard")

    def stop(progress):
        if progress.step == 3:
            raise SystemExit

    source = Source(str(make_photos()), cache_dir=tmp_path / "cache")
    with pytest.raises(SystemExit):
        jobs.train(source, tmp_path / "run", recipe_changes=TINY, track=["tensorboard"], watcher=Watcher(on_step=stop))
    jobs.resume(tmp_path / "run")
    assert {step for step, _ in scalars(tmp_path / "run")["train_loss"]} == {1, 2}


def test_an_unknown_or_missing_tracker_is_one_line_before_anything_is_written(make_photos, tmp_path, monkeypatch):
    source = Source(str(make_photos()), cache_dir=tmp_path / "cache")
    with pytest.raises(TrackError, match="track: 'paper' is not one of aim, .*tensorboard"):
        jobs.train(source, tmp_path / "run", track=["paper"])
    monkeypatch.setattr("cssoftmax.trackers.get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(TrackError, match="track: mlflow is not installed; `pip install mlflow`"):
        jobs.train(source, tmp_path / "run", track=["mlflow"])
    assert not (tmp_path / "run").exists()
