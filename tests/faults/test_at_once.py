"""Several commands at once on one cache, one run's folder, one file of embeddings."""

import pytest
from processes import QUICK, begin, command, left_aside, stop_soon

from cssoftmax import files


def whole(run):
    return files.read_tensors(run / "weights.safetensors")[1]


def same(one, other):
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def ended_well(*commands):
    for done in [wait() for wait in commands]:
        assert done.code == 0, done.err


def test_four_trainings_make_one_cache_that_each_can_use(photos, tmp_path):
    runs = [tmp_path / f"run{number}" for number in range(4)]
    ended_well(*(begin("train", photos, *QUICK, "--output", run) for run in runs))
    assert command("train", photos, *QUICK, "--output", tmp_path / "alone").code == 0  # on the cache they left
    expected = whole(tmp_path / "alone")
    assert all(same(whole(run), expected) for run in runs)
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 1
    assert not left_aside(tmp_path)


def test_embedding_beside_a_training_changes_neither(trained, photos, tmp_path):
    train = ("train", photos, *QUICK, "--output")
    embed = ("embed", trained, photos, "--output")
    ended_well(begin(*train, tmp_path / "beside"), begin(*embed, tmp_path / "beside.parquet"))
    ended_well(begin(*train, tmp_path / "alone"))
    ended_well(begin(*embed, tmp_path / "alone.parquet"))
    assert same(whole(tmp_path / "beside"), whole(tmp_path / "alone"))
    assert (tmp_path / "beside.parquet").read_bytes() == (tmp_path / "alone.parquet").read_bytes()


@pytest.mark.parametrize("what", ["train", "resume", "embed"])
def test_a_second_command_on_the_same_output_is_kept_out_until_the_first_ends(what, trained, photos, tmp_path):
    run, output = tmp_path / "run", tmp_path / "out.parquet"
    arguments = {
        "train": ("train", photos, *QUICK, "--output", run),
        "resume": ("train", "--resume", run),
        "embed": ("embed", trained, photos, "--output", output),
    }[what]
    place = output.with_name(f".{output.name}.parts") if what == "embed" else run
    if what == "resume":
        stopped = command("train", photos, *QUICK, "--output", run, first=stop_soon)
        assert stopped.code == 130, stopped.err
    with files.only_one(place):
        assert command(*arguments).error == f"error: {place}: another command writes to this folder; wait for it"
    assert command(*arguments).code == 0
    assert output.exists() if what == "embed" else (run / "summary.json").exists()
