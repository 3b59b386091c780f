"""The sharded head on 1 to 4 gloo processes: it is the whole head, and no rank waits for ever."""

import json
import multiprocessing
import socket
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))  # the ranks import what they run by its name
import sharded_ranks

from cssoftmax import CosFaceLoss, CSSoftmaxLoss
from cssoftmax.losses import LOSSES, CenterLoss
from cssoftmax.runs import load_model
from cssoftmax.sharded import shard_loss

BOUND = 100  # seconds
context = multiprocessing.get_context("forkserver")

C = sharded_ranks.C
per_class = torch.linspace(0.1, 0.4, C)
rescaled = {"weight": torch.linspace(0.5, 2.0, C)}
# Every loss as it is, and what else changes the sums over classes, rows and ranks.
PLAIN = [(name, {}) for name in LOSSES]
OTHERS = [
    ("cs-softmax", {"reduction": "none", **rescaled, "label_smoothing": 0.1}),
    ("cs-softmax", {"implementation": "chunked", "label_smoothing": 0.1, "detach_update": False}),
    ("arcface", {"implementation": "chunked", "margin": per_class, **rescaled}),
    ("magface", {"implementation": "chunked", "reduction": "none", **rescaled}),
    ("curricularface", {"implementation": "chunked", "reduction": "sum"}),
    ("softmax", {"implementation": "chunked", "label_smoothing": 0.1}),
    ("subcenter-arcface", {"sub_centers": 4, "label_smoothing": 0.1, **rescaled}),
    ("cosface", {"num_classes": 5}),  # on 4 ranks the last has none
]


def run(world, folder, *checks):
    """Runs checks on some ranks; returns what each rank that failed wrote, by rank."""
    folder.mkdir(exist_ok=True)
    join([context.Process(target=sharded_ranks.start, args=(r, world, str(folder), checks)) for r in range(world)])
    return {int(path.suffix[1:]): path.read_text() for path in folder.glob("error.*")}


def join(ranks):
    """None runs longer than the bound."""
    end = time.monotonic() + BOUND
    try:
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(max(0.0, end - time.monotonic()))
        waiting = [rank for rank, process in enumerate(ranks) if process.is_alive()]
    finally:
        for process in ranks:
            process.kill()
    assert not waiting, f"ranks {waiting} still wait after {BOUND} s"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Every loss, whole, after 50 steps in float64 and in float32."""
    file = tmp_path_factory.mktemp("trained") / "states.pt"
    dtypes = (torch.float64, torch.float32)
    torch.save(
        {name: tuple(sharded_ranks.train(sharded_ranks.build(name, dtype), 50) for dtype in dtypes) for name in LOSSES},
        file,
    )
    return str(file)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_loss_gradients_and_weights_after_50_steps_are_those_of_the_whole_head(world, tmp_path, trained):
    # Four ranks on few cores wait for each other most of the time: of what three do, a part.
    cases = PLAIN + (OTHERS if world < 4 else OTHERS[-2:])
    names = list(LOSSES) if world < 4 else list(LOSSES)[::3]
    failed = run(world, tmp_path, ("equal", cases), ("fifty_steps", trained, names))
    assert not failed, "\n".join(failed.values())


def test_ranks_may_share_out_rows_and_classes_at_once(tmp_path):
    moving = [(name, {}) for name in ("adacos", "adaface", "curricularface", "sphereface")]
    failed = run(4, tmp_path, ("equal", moving + OTHERS[:4], (2, 2)), ("drawn_alone",))
    assert not failed, "\n".join(failed.values())


def test_a_sample_of_all_classes_is_all_classes_and_a_smaller_one_is_right_on_average(tmp_path):
    cases = [case for case in PLAIN + OTHERS if case[0] in ("cs-softmax", "softmax", "subcenter-arcface", "magface")]
    failed = run(2, tmp_path, ("equal", cases, None, 0.999), ("unbiased",), ("untouched",))
    assert not failed, "\n".join(failed.values())


def test_what_else_a_loss_does_it_does_sharded(tmp_path):
    checks = (
        ("inference", "cs-softmax", {}),
        ("inference", "subcenter-arcface", {"sub_centers": 2}),
        ("double_backward",),
        ("kernels",),
        ("half_precision",),
        ("with_network", False),
        ("with_network", True),
        ("refused",),
    )
    failed = run(3, tmp_path, *checks)
    assert not failed, "\n".join(failed.values())


def test_a_checkpoint_of_2_ranks_loads_on_3_and_on_one_and_as_a_plain_file(tmp_path):
    failed = run(2, tmp_path / "two", ("save", str(tmp_path)))
    failed |= run(3, tmp_path / "three", ("load", str(tmp_path)))
    assert not failed, "\n".join(failed.values())
    for name in ("softmax", "subcenter-arcface", "curricularface"):
        exported = torch.load(tmp_path / f"{name}.pt")
        loss = sharded_ranks.build(name)
        assert not torch.equal(loss.weight, exported["weight"])
        state = loss.state_dict()
        torch.distributed.checkpoint.load({"loss": state}, checkpoint_id=tmp_path / name)
        loss.load_state_dict(state)
        assert all(torch.equal(value, exported[key]) for key, value in loss.state_dict().items())
        save_file(exported, tmp_path / "plain.safetensors")


def test_a_training_s_checkpoint_is_the_same_on_any_number_of_ranks(tmp_path):
    files = [None, *(str(tmp_path / f"{number}.safetensors") for number in range(3))]
    for world, (before, after) in zip((2, 3, 1), pairwise(files), strict=True):
        failed = run(world, tmp_path / str(world), ("written_again", before, after))
        assert not failed, "\n".join(failed.values())
    first, *others = (load_file(file) for file in files[1:])
    assert {name.split(".")[0] for name in first} == {"model", "average", "optimizer"}
    for other in others:
        assert first.keys() == other.keys() and all(torch.equal(first[name], other[name]) for name in first)


def test_a_network_shared_out_by_fsdp_and_sampled_classes_train_as_on_one_process(tmp_path):
    whole = {}
    for keeps in ("ema", "lookahead"):
        first, _ = sharded_ranks.fitted(tmp_path, keeps, keeps=keeps)
        rest, weights = sharded_ranks.fitted(tmp_path, keeps, resume=True, keeps=keeps)
        whole[keeps] = first + rest, weights
    torch.save(whole, tmp_path / "whole.pt")
    checks = (
        ("fully_sharded_training", str(tmp_path), str(tmp_path / "whole.pt")),
        ("sampled_training", str(tmp_path)),
    )
    failed = run(2, tmp_path / "two", *checks)
    assert not failed, "\n".join(failed.values())
    # What two processes wrote, one goes on with.
    for name, keeps in (("fsdp", "ema"), ("classes", "lookahead")):
        _, found = sharded_ranks.fitted(tmp_path, name, resume=True, keeps=keeps)
        for key, value in whole[keeps][1].items():
            sharded_ranks.close(found[key], value, 1e-4, key)


def test_a_training_on_2_processes_stops_and_goes_on_with_3_and_its_weights_load_on_one(tmp_path):
    ended = {}
    for world, resume in ((2, False), (3, True)):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        arguments = [(rank, world, port, str(tmp_path), resume) for rank in range(world)]
        join([context.Process(target=sharded_ranks.job, args=each) for each in arguments])
        ended[world] = [json.loads((tmp_path / f"ended.{world}.{rank}").read_text()) for rank in range(world)]
    assert all("stopped after step" in end and "--resume" in end for end, _ in ended[2]), ended[2]
    assert all(end == "done" for end, _ in ended[3]), ended[3]
    # Every rank measured the same.
    assert ended[2][0] == ended[2][1] and ended[3][0] == ended[3][1] == ended[3][2]
    assert [line["epoch"] for _, lines in (ended[2][0], ended[3][0]) for line in lines] == [1, 2]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["measures"]["accuracy"] == pytest.approx(ended[3][0][1][0]["eval_accuracy"])
    assert load_model(tmp_path / "run").loss.weight.shape == (10, 32)


def test_ranks_that_wait_for_one_that_died_say_so(tmp_path):
    began = time.monotonic()
    failed = run(3, tmp_path, ("lonely",))
    assert failed.keys() == {0, 1} and time.monotonic() - began < 50
    assert all("a rank of the sharded loss no longer answers" in text for text in failed.values())


def test_the_page_on_scaling_says_what_was_measured_and_what_the_model_computes():
    check = [sys.executable, str(Path(__file__).parent.parent / "tools" / "render_scaling.py"), "--check"]
    assert subprocess.run(check).returncode == 0


def test_what_cannot_be_sharded_is_named():
    with pytest.raises(TypeError, match="loss: a loss of this package is needed, got CenterLoss"):
        shard_loss(CenterLoss(4, 3), None)
    with pytest.raises(TypeError, match="mesh: a torch.distributed DeviceMesh is needed, got int"):
        shard_loss(CSSoftmaxLoss(4, 3), 2)
    assert CosFaceLoss(4, 3).classify(torch.eye(4)[:2]).shape == (2,)
