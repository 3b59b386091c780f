"""Training, resuming and measuring, from data to a run's folder."""

import importlib.metadata
import io
import json
import math
import os
import signal
from types import SimpleNamespace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
import torch
from PIL import Image
from safetensors.torch import load_file

from cssoftmax import checkpoint, files, jobs, losses, metrics, runs, training
from cssoftmax.checkpoint import TrainingError
from cssoftmax.classifier import as_input
from cssoftmax.data import DataError, load_dataset
from cssoftmax.recipes import RecipeError
from cssoftmax.runs import JobError, Source
from cssoftmax.training import Interrupted
from cssoftmax.watcher import Watcher

FILES = [
    "README.md",
    "config.json",
    "evaluation.safetensors",
    "metrics.jsonl",
    "samples.safetensors",
    "summary.json",
    "weights.safetensors",
]
TINY = {"width": 2, "embedding_size": 8, "epochs": 2, "batch_size": 8}


@pytest.fixture(autouse=True)
def _no_data_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("CSSOFTMAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CSSOFTMAX_DATA", raising=False)


@pytest.fixture
def run(tmp_path, make_photos):
    """Trains on a folder of photos, the same each time, and returns the run's folder."""
    photos = make_photos()

    def train(name, *, source=None, changes=None, **options):
        return jobs.train(
            source or Source(str(photos)), tmp_path / name, recipe_changes=TINY | (changes or {}), **options
        )

    return train


def weights(folder):
    return (folder / "weights.safetensors").read_bytes()


def read(path):
    return json.loads(path.read_text())


def epochs(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def timeless(folder):
    return [{key: value for key, value in line.items() if key != "seconds"} for line in epochs(folder)]


def test_a_run_repeats_bit_for_bit_and_another_seed_makes_another(run):
    first, again, other = run("first", seed=1), run("again", seed=1), run("other", seed=2)
    assert weights(first) == weights(again) != weights(other)
    assert timeless(first) == timeless(again) != timeless(other)
    assert read(first / "summary.json")["measures"] == read(again / "summary.json")["measures"]


def test_a_run_is_a_folder_of_plain_files(run):
    folder = run("run", loss="cosface", loss_settings={"margin": 0.2}, seed=3)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    config, summary = read(folder / "config.json"), read(folder / "summary.json")
    assert config["loss"] == {
        "name": "cosface",
        "margin": 0.2,
        "scale": config["loss"]["scale"],
        "label_smoothing": 0.0,
    }
    assert config["recipe"]["epochs"] == 2
    assert (config["seed"], config["classes"], config["input_shape"]) == (3, ["day", "night"], [3, 8, 8])
    assert config["versions"]["torch"] == importlib.metadata.version("torch")
    assert [line["epoch"] for line in epochs(folder)] == [1, 2]
    assert summary["split"] == "test"
    assert {measure.key for measure in metrics.MEASURES} == set(summary["measures"])
    assert summary["measures"]["accuracy"] == pytest.approx(epochs(folder)[-1]["eval_accuracy"])
    assert summary["parameters"] == sum(p.numel() for p in runs.load_model(folder).parameters())


@pytest.mark.parametrize("options", [{}, {"amp": "bf16"}, {"changes": {"ema": 0.5}}])
def test_evaluate_finds_exactly_what_train_found(run, options):
    folder = run("run", **options)
    before = {name: (folder / name).read_bytes() for name in FILES}
    measures = jobs.evaluate(folder)
    assert {name: (folder / name).read_bytes() for name in FILES} == before
    assert measures == read(folder / "summary.json")["measures"]


def test_sounds_train_with_their_augmentation_and_mixup(run, tones, tmp_path):
    changes = TINY | {"mixup": 0.2, "epochs": 40, "width": 8}
    folder = jobs.train(Source(str(tones)), tmp_path / "run", recipe_changes=changes)
    config = read(folder / "config.json")
    assert (config["kind"], config["recipe"]["network"], config["recipe"]["mixup"]) == ("sound", "melnet", 0.2)
    assert read(folder / "summary.json")["measures"]["accuracy"] == 1


def test_photos_of_day_and_night_are_told_apart(run):
    folder = run("run", changes={"network": "lenet", "epochs": 20, "batch_size": 4, "lr": 0.05})
    assert read(folder / "summary.json")["measures"]["accuracy"] == 1


@pytest.mark.parametrize("loss", losses.LOSSES)
def test_every_loss_trains_and_is_rebuilt_from_its_run(run, loss):
    folder = run("run", loss=loss, changes={"epochs": 1, "label_smoothing": 0.1})
    rebuilt = runs.load_model(folder).loss
    assert isinstance(rebuilt, losses.LOSSES[loss])
    assert rebuilt.label_smoothing == 0.1


def test_a_run_keeps_pictures_of_what_a_person_should_see(run):
    folder = run("run")
    kept, measured = load_file(folder / "samples.safetensors"), load_file(folder / "evaluation.safetensors")
    assert sorted(kept["rows"].tolist()) == list(range(len(measured["target"])))  # so few that all are kept
    assert kept["ends"][-1] == len(kept["bytes"])
    first = kept["bytes"][: kept["ends"][0]].numpy().tobytes()
    image = torch.from_numpy(np.array(Image.open(io.BytesIO(first))))
    dataset = load_dataset(read(folder / "config.json")["source"]["name"])
    original = dataset.test.inputs[kept["rows"][0]].permute(1, 2, 0)
    assert image.shape == original.shape and (image.float().mean() - original.float().mean()).abs() < 8


def test_a_run_on_sounds_keeps_recordings(tones, tmp_path):
    folder = jobs.train(Source(str(tones)), tmp_path / "run", recipe_changes=TINY | {"epochs": 1})
    kept = load_file(folder / "samples.safetensors")
    assert len(kept["rows"]) == 4
    sound, rate = soundfile.read(io.BytesIO(kept["bytes"][: kept["ends"][0]].numpy().tobytes()))
    assert len(sound) / rate == pytest.approx(0.1, abs=0.05)
    assert 0.2 < abs(sound).max() <= 1


def test_label_smoothing_reaches_the_loss(run):
    plain, smooth = (
        run(f"{value}", changes={"epochs": 1, "label_smoothing": value, "lr": 1e-6}) for value in (0.0, 0.5)
    )
    assert epochs(plain)[0]["train_loss"] != pytest.approx(epochs(smooth)[0]["train_loss"], rel=0.01)


def test_a_validation_leaves_the_test_split_alone(tmp_path, make_photos):
    folders = []
    for name in ("one", "two"):
        make_photos(f"{name}/train", seed=0)
        make_photos(f"{name}/test", number=4, seed=len(name) + ord(name[0]))
        folders.append(tmp_path / name)
    runs = [
        jobs.train(Source(str(folder), validation=0.25), tmp_path / f"run {folder.name}", recipe_changes=TINY)
        for folder in folders
    ]
    assert weights(runs[0]) == weights(runs[1])
    summaries = [read(folder / "summary.json") for folder in runs]
    assert summaries[0]["measures"] == summaries[1]["measures"]
    assert summaries[0]["split"] == "validation"
    embeddings = load_file(runs[0] / "evaluation.safetensors")["embeddings"]
    assert len(embeddings) == 6  # a quarter of 2 x 12


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"loss": "hinge"}, ValueError, "loss: 'hinge' is not one of"),
        ({"loss_settings": {"margin": 1.0}}, ValueError, r"margin: 1.0 is outside \[0, 1\)"),
        ({"loss": "softmax", "loss_settings": {"margin": 0.1}}, ValueError, "margin: softmax has no such setting"),
        ({"changes": {"network": "vgg"}}, RecipeError, "network: 'vgg' is not one of lenet"),
        ({"changes": {"epochs": 0}}, RecipeError, "epochs: 0 is not a whole number in 1..100000"),
        ({"changes": {"depth": 3}}, RecipeError, "depth: no such setting"),
        ({"amp": "fp8"}, JobError, "amp: 'fp8' is not one of no, bf16, fp16"),
        ({"sample_rate": 0.0}, JobError, r"sample_rate: 0.0 is outside \(0, 1\]"),
        ({"source": Source("nowhere")}, DataError, "unknown data set 'nowhere'"),
        ({"source": Source("digits", test_group="theo")}, DataError, "--test-group theo: unknown"),
        ({"source": Source("mnist", data_root="missing")}, DataError, "missing: no such folder"),
        ({"changes": {"network": "resnet9"}, "source": Source("digits", image_size=2)}, JobError, "2 x 2"),
    ],
)
def test_a_start_that_fails_writes_nothing(run, tmp_path, options, error, message):
    if options.get("source") == Source("mnist", data_root="missing"):
        options = options | {"source": Source("mnist", data_root=tmp_path / "missing")}
    with pytest.raises(error, match=message) as caught:
        run("run", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("validation", [-0.1, 1.0, math.nan])
def test_a_validation_share_is_below_one(validation):
    with pytest.raises(JobError, match="validation: .* is outside"):
        Source("digits", validation=validation)


def test_a_diverged_start_does_not_block_the_next_one(run, tmp_path, monkeypatch):
    monkeypatch.setattr(training.endings, "MOST_LEFT_OUT", 1)
    with pytest.raises(TrainingError, match="lr: .*lower --lr"):
        run("run", loss="softmax", changes={"lr": 900.0, "epochs": 1, "batch_size": 2})
    assert sorted(path.name for path in run("run", loss="softmax").iterdir()) == FILES


def test_a_run_is_not_trained_over(run, tmp_path):
    folder = run("run")
    before = weights(folder)
    with pytest.raises(JobError, match=r"run: there is a run in this folder; go on with it by --resume"):
        run("run", seed=5)
    with pytest.raises(JobError, match="this run is complete; `cssoftmax evaluate"):
        jobs.resume(folder)
    assert weights(folder) == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(JobError, match=r"other/config.json: does not describe a run"):
        run("other")
    assert (tmp_path / "other" / "config.json").read_text() == '{"model_type": "bert"}'


@pytest.mark.parametrize("mixup", [0.0, 0.3])
def test_the_margin_rises_in_its_share_of_the_steps(run, mixup):
    watched, margins = [], []
    watcher = Watcher(
        on_start=lambda dataset, recipe, model, epoch: watched.append(model.loss),
        on_step=lambda progress: margins.append(float(watched[0].margin)),
    )
    settings = {"epochs": 4, "warmup": 0.5, "mixup": mixup}
    folder = run("risen", loss="arcface", changes=settings, watcher=watcher)
    steps = len(margins)
    assert steps >= 8
    assert margins == pytest.approx([0.5 * min((step + 1) / (steps / 2), 1) for step in range(steps)], abs=1e-6)
    config = runs.read_config(folder)
    assert config["loss"]["margin"] == 0.5
    assert float(runs.load_model(folder).loss.margin) == 0.5


def stopping_at(step):
    def on_step(progress):
        if progress.step == step:
            raise SystemExit  # as abrupt as a kill: nothing is saved

    return Watcher(on_step=on_step)


@pytest.mark.parametrize("step", [1, 3, 6])
def test_a_run_that_died_goes_on_bit_for_bit(run, tmp_path, step):
    changes = {"epochs": 3, "ema": 0.8, "mixup": 0.3}
    whole = run("whole", changes=changes)
    with pytest.raises(SystemExit):
        run("died", changes=changes, watcher=stopping_at(step))
    folder = tmp_path / "died"
    (folder / ".checkpoint.safetensors.1.tmp").write_bytes(b"half")
    jobs.resume(folder)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert weights(folder) == weights(whole)
    assert timeless(folder) == timeless(whole)


def test_a_sample_of_the_classes_is_drawn_on_one_process_too(run):
    drawn = run("drawn", sample_rate=0.5, changes={"epochs": 1})
    assert weights(drawn) == weights(run("again", sample_rate=0.5, changes={"epochs": 1}))
    assert 0 < epochs(drawn)[0]["train_accuracy"] <= 1
    assert not torch.distributed.is_initialized() and runs.load_model(drawn).loss.weight.shape == (2, 8)


@pytest.mark.parametrize(
    ("changes", "environment", "message"),
    [
        ({"sample_rate": 0.5, "amp": "fp16"}, {}, "amp: fp16 does not go with --sample-rate; take bf16"),
        ({"amp": "fp16"}, {"FSDP_VERSION": "2"}, "amp: fp16 does not go with FSDP; take bf16"),
        ({}, {"FSDP_VERSION": "1"}, "fsdp_version: .* launch with --fsdp_version 2"),
        (
            {"recipe": {"proxy_width": 8}, "shard_classes": True},
            {},
            "recipe: its proxy is .* leave --shard-classes out",
        ),
    ],
)
def test_what_does_not_go_with_a_launch_is_named(monkeypatch, changes, environment, message):
    if environment:
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
        monkeypatch.setenv("FSDP_VERSION", environment["FSDP_VERSION"])
    with pytest.raises(JobError, match=message):
        jobs._check_launch({"recipe": {}, "amp": "no"} | changes, SimpleNamespace(num_processes=2))


def test_a_proxy_sees_inputs_as_its_model_does(run, make_photos):
    source = Source(str(make_photos("square")), image_size=32)
    config = runs.read_config(run("whitened", source=source, changes={"network": "whitenet", "proxy_width": 1}))
    dataset, config["recipe"]["proxy_width"] = source.load(seed=0), 0
    model, _ = jobs.prepare(config, dataset)
    assert runs.proxy_of(config, model) is None
    config["recipe"]["proxy_width"] = 4
    proxy = runs.proxy_of(config, model)
    inputs = as_input(dataset.train.inputs[:3])
    assert next(layer.out_channels for layer in proxy.network.modules() if isinstance(layer, torch.nn.Conv2d)) == 4
    seen, wanted = (one.network[1][0](one.network[0](inputs)) for one in (proxy, model))
    assert torch.equal(seen, wanted) and not torch.equal(seen, proxy.network[1][0](inputs))


def test_a_streamed_run_goes_on_at_its_exact_place(run, make_photos, tmp_path, monkeypatch):
    photos = [(file, file.parent.name) for file in sorted(make_photos("others", number=30).rglob("*.png"))]
    rows = [{"image": {"bytes": file.read_bytes(), "path": None}, "label": label} for file, label in photos]
    (tmp_path / "shards").mkdir()
    for number in range(3):
        table = pyarrow.Table.from_pylist(rows[number::3])
        pyarrow.parquet.write_table(table, tmp_path / "shards" / f"{number}.parquet", row_group_size=4)
    source = Source(str(tmp_path / "shards"), shuffle_buffer=12)
    whole = run("whole", source=source)

    def stop(progress):
        if progress.step == 8:  # of 6 an epoch
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match="stopped after step 9 of 12"):
        run("stopped", source=source, watcher=Watcher(on_step=stop))
    jobs.resume(tmp_path / "stopped")
    assert weights(tmp_path / "stopped") == weights(whole) and timeless(tmp_path / "stopped") == timeless(whole)
    # Killed, it goes on from what it wrote within the epoch.
    monkeypatch.setattr(training.loop, "SAVE_AFTER", 0.0)
    with pytest.raises(SystemExit):
        run("died", source=source, watcher=stopping_at(10))
    resumed = []
    jobs.resume(tmp_path / "died", watcher=Watcher(on_step=lambda progress: resumed.append(progress.step)))
    assert resumed == [10, 11, 12] and weights(tmp_path / "died") == weights(whole)
    first = read(whole / "summary.json")["measures"]
    assert jobs.evaluate(whole) == first


@pytest.mark.parametrize(
    ("file", "which"),
    [("checkpoint.safetensors", 1), ("checkpoint.safetensors", 2), ("weights.safetensors", 1), ("summary.json", 1)],
)
def test_death_between_any_two_files_is_healed_by_resume(run, tmp_path, monkeypatch, file, which):
    whole = run("whole")

    def dying(write):
        count = 0

        def wrapper(path, *args):
            nonlocal count
            count += path.name == file
            if path.name == file and count == which:
                raise SystemExit
            write(path, *args)

        return wrapper

    write_tensors, write_json = dying(files.write_tensors), dying(files.write_json)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_tensors", write_tensors)
        patch.setattr(files, "write_tensors", write_tensors)
        patch.setattr(files, "write_json", write_json)
        with pytest.raises(SystemExit):
            run("died")
    jobs.resume(tmp_path / "died")
    assert sorted(path.name for path in (tmp_path / "died").iterdir()) == FILES
    assert weights(tmp_path / "died") == weights(whole)
    assert timeless(tmp_path / "died") == timeless(whole)


def test_an_interruption_says_how_to_go_on(run, tmp_path):
    watcher = Watcher(on_step=lambda progress: os.kill(os.getpid(), signal.SIGTERM) if progress.step == 1 else None)
    with pytest.raises(Interrupted, match=r"stopped after step 2 of 4; `cssoftmax train --resume .*run` goes on"):
        run("run", watcher=watcher)
    with pytest.raises(JobError, match="there is a run in this folder"):
        run("run")
    with pytest.raises(JobError, match="weights.safetensors is missing, the training did not end"):
        jobs.evaluate(tmp_path / "run")
    assert sorted(path.name for path in jobs.resume(tmp_path / "run").iterdir()) == FILES


def test_a_run_is_measured_on_its_own_data_only(run, make_photos, tmp_path):
    folder = run("run")
    (tmp_path / "photos" / "day" / "0.png").unlink()
    with pytest.raises(JobError, match="the data are not those this run was made with"):
        jobs.evaluate(folder)


def test_damaged_files_of_a_run_are_named(run, tmp_path):
    folder = run("run")
    whole = weights(folder)
    for content in (b"", whole[:50], whole[:-8]):
        (folder / "weights.safetensors").write_bytes(content)
        with pytest.raises(JobError, match=r"run/weights.safetensors: these weights cannot be loaded") as caught:
            jobs.evaluate(folder)
        assert "\n" not in str(caught.value)
    (folder / "weights.safetensors").write_bytes(weights(run("wider", changes={"width": 3})))
    with pytest.raises(JobError, match=r"run/weights.safetensors: these weights cannot be loaded"):
        jobs.evaluate(folder)
    (folder / "weights.safetensors").write_bytes(whole)
    (folder / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(JobError, match=r"run/metrics.jsonl: cannot be read"):
        jobs.evaluate(folder)
    config = read(folder / "config.json")
    damaged = [
        "",
        "[]",
        "null",
        "{}",
        json.dumps(config | {"recipe": 5}),
        json.dumps(config | {"loss": {"name": "no"}}),
    ]
    damaged += [json.dumps(config | {"source": {"name": 3}}), json.dumps(config | {"recipe": {"depth": 3}})]
    for text in damaged:
        (folder / "config.json").write_text(text)
        with pytest.raises(JobError, match=r"run/config.json: does not describe a run") as caught:
            jobs.evaluate(folder)
        assert "\n" not in str(caught.value)
    for missing in (tmp_path / "nowhere", tmp_path / "photos" / "day" / "1.png"):
        with pytest.raises(JobError, match="no run here, config.json is missing"):
            jobs.resume(missing)


def test_runs_of_different_precision_follow_each_other_in_one_process(run):
    runs = [run(amp, amp=amp) for amp in ("no", "bf16")]
    again = run("no again", amp="no")
    assert weights(runs[0]) != weights(runs[1])
    assert weights(runs[0]) == weights(again)


def test_a_watcher_hears_of_every_phase(run):
    phases = []
    run("run", watcher=Watcher(on_phase=phases.append))
    assert phases == ["training", "evaluating", "training", "evaluating", "training", "evaluating", "measuring"]
