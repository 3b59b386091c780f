"""A network of the user's own, by import path: any module, but never code that only a file asks for."""

import json

import pytest
from torch import nn

from cssoftmax import comparison, jobs, networks, runs
from cssoftmax.embedder import Embedder
from cssoftmax.export import export
from cssoftmax.runs import JobError, Source

CODE = """
from pathlib import Path
from torch import nn

Path("imported").touch()

def small(channels, embedding_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * 64, embedding_size))

class Wide(nn.Module):
    def __init__(self, channels, **settings):
        super().__init__()
        self.settings = settings
        self.last = nn.Linear(channels * 64, settings["embedding_size"])

    def forward(self, images):
        return self.last(images.flatten(1))

def fixed(channels):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * 64, 7))

def broken():
    raise KeyError("weights")

def maps(channels):
    return nn.Conv2d(channels, 4, 3)

def picture(channels):
    return nn.Flatten(0)

number = 3
"""
TINY = {"embedding_size": 5, "epochs": 1, "batch_size": 8}


@pytest.fixture(autouse=True)
def _mine(tmp_path, monkeypatch):
    """A module that is in the working directory only."""
    monkeypatch.setenv("CSSOFTMAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_code.py").write_text(CODE)
    yield
    import sys

    sys.modules.pop("own_code", None)


def test_a_function_is_called_with_what_it_takes(make_photos):
    assert networks.build("own_code:small", 3, 5, 16)[1].out_features == 5
    assert networks.build("own_code:Wide", 3, 5, 16).settings == {"embedding_size": 5, "width": 16}
    assert isinstance(networks.build("torch.nn:Identity", 3, 5, 16), nn.Identity)


def test_low_resolution_needs_a_network_that_takes_it(make_photos, tmp_path):
    changes = TINY | {"network": "own_code:small", "low_resolution": 0.5}
    with pytest.raises(JobError, match=r"network: own_code:small .*inputs of 3 x 5 x 5 \(.*, or --low-resolution 0$"):
        jobs.train(Source(str(make_photos())), tmp_path / "run", recipe_changes=changes)
    assert not (tmp_path / "run").exists()


def test_a_run_records_it_and_no_file_makes_it_run(make_photos, tmp_path):
    import sys

    changes = TINY | {"network": "own_code:small"}
    run = jobs.train(Source(str(make_photos())), tmp_path / "run", recipe_changes=changes)
    assert json.loads((run / "config.json").read_text())["recipe"]["network"] == "own_code:small"
    sys.modules.pop("own_code")
    (tmp_path / "imported").unlink()
    for load in (runs.load_model, jobs.evaluate, Embedder.load):
        with pytest.raises(JobError, match=r"run.*: its network is code, own_code:small, .* --network own_code:small"):
            load(run)
    with pytest.raises(JobError, match="was made with own_code:small, not own_code:fixed"):
        Embedder.load(run, network="own_code:fixed")

    assert not (tmp_path / "imported").exists()
    embedder = Embedder.load(run, network="own_code:small")
    assert (tmp_path / "imported").exists()
    export(embedder, tmp_path / "model.safetensors", "safetensors")
    with pytest.raises(JobError, match=r"model.safetensors: its network is code"):
        Embedder.load(tmp_path / "model.safetensors")
    again = Embedder.load(tmp_path / "model.safetensors", network="own_code:small")
    assert again.digest == embedder.digest
    jobs.evaluate(run, network="own_code:small")


def test_losses_are_compared_on_it(make_photos, tmp_path):
    comparison.compare(
        Source(str(make_photos())),
        tmp_path / "comparison",
        losses=["softmax", "cs-softmax"],
        seeds=1,
        recipe_changes=TINY | {"network": "own_code:small"},
        cpu=True,
    )
    lines = (tmp_path / "comparison" / "runs.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == ["softmax", "cs-softmax"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vgg", "network: 'vgg' is not one of lenet"),
        ("vgg:", "network: 'vgg:' is not one of lenet"),
        ("own code:small", "network: 'own code:small' is not one of lenet"),
        ("own_cod:small", "network: no module 'own_cod' here or installed"),
        ("own_code:smal", "network: own_code has no 'smal'"),
        ("own_code:number", "network: own_code:number is a int, not a function that returns a network"),
        ("own_code:broken", "network: own_code:broken failed: KeyError: 'weights'"),
        ("own_code:Path", "network: own_code:Path returned a .*Path, not an nn.Module"),
        (
            "own_code:fixed",
            r"own_code:fixed returns \(N, 7\), not embeddings \(N, 5\); give --embedding-size 7",
        ),
        ("own_code:maps", r"network: own_code:maps returns a tensor of shape \(1, 4, 6, 6\), not embeddings \(N, 5\)"),
        ("torch.nn:Bilinear", "network: torch.nn:Bilinear failed: TypeError"),
    ],
)
def test_a_network_that_does_not_fit_is_one_line_before_anything_is_written(make_photos, tmp_path, name, message):
    with pytest.raises(ValueError, match=message) as caught:
        jobs.train(Source(str(make_photos())), tmp_path / "run", recipe_changes=TINY | {"network": name})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
