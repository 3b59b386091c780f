"""What is streamed is what is in memory, in an order that a seed gives, from shards that are read about once."""

import io
from collections import Counter

import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cssoftmax.data import DataError, Pixels, Streamed, hold_out_classes, load_dataset, validation_split
from cssoftmax.data.shards import Shards, _Reader, read_ahead
from cssoftmax.data.split import some


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return {"bytes": file.getvalue(), "path": None}


def table(number, seed, labels=("cat", "dog", "ant")):
    generator = np.random.default_rng(seed)
    target = generator.integers(0, len(labels), number)
    return pyarrow.table(
        {
            "image": [png(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(number)],
            "label": [labels[index] for index in target],
        }
    )


@pytest.fixture
def animals(tmp_path):
    """Three files, of row groups of seven."""
    folder = tmp_path / "animals"
    folder.mkdir()
    for seed, (name, number) in enumerate((("train-0", 30), ("train-1", 25), ("test-0", 20))):
        pyarrow.parquet.write_table(table(number, seed), folder / f"{name}.parquet", row_group_size=7)
    return folder


def same(a, b):
    """A split in memory, and streamed."""
    index = torch.randperm(len(a.target), generator=torch.Generator().manual_seed(0))
    return (
        torch.equal(a.inputs[index], b.inputs[index])
        and torch.equal(a.target, b.target)
        and torch.equal(a.rows, b.rows)
        and a.groups == b.groups
        and a.inputs.shape == b.inputs.shape
        and a.inputs.dtype == b.inputs.dtype
    )


def test_a_streamed_data_set_is_the_one_in_memory(animals, make_photos, tones, tmp_path):
    for source in (animals, make_photos(), tones):
        whole = load_dataset(str(source), cache_dir=tmp_path / "cache")
        streamed = load_dataset(str(source), shuffle_buffer=10)
        assert isinstance(streamed.train.inputs, Streamed)
        assert streamed.classes == whole.classes and streamed.preprocessing == whole.preprocessing
        assert same(whole.train, streamed.train) and same(whole.test, streamed.test)
        parts = [validation_split(dataset, 0.3, seed=1) for dataset in (whole, streamed)]
        assert same(parts[0].train, parts[1].train) and same(parts[0].test, parts[1].test)
    both = (load_dataset(str(animals), shuffle_buffer=buffer) for buffer in (None, 9))
    whole, streamed = (hold_out_classes(dataset, ["dog"])[0] for dataset in both)
    assert same(whole.train, streamed.train) and whole.classes == streamed.classes == ("ant", "cat")


def test_a_data_set_on_the_hub_is_read_where_it_is(animals, monkeypatch):
    import datasets
    import huggingface_hub

    for file in animals.iterdir():
        with fsspec.open(f"memory://hub/{file.name}", "wb") as copy:
            copy.write(file.read_bytes())
    asked, build = [], datasets.load_dataset_builder

    def builder(hub_id, revision=None):
        """As if the data set were a CSV file, which the hub has made parquet files of."""
        asked.append((hub_id, revision))
        urls = {"train": ["train-0", "train-1"], "test": ["test-0"]}
        files = {split: [f"memory://hub/{name}.parquet" for name in names] for split, names in urls.items()}
        return build("parquet" if revision else "csv", data_files=files)

    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *args, **options: None)
    hub = load_dataset("hf:someone/animals", shuffle_buffer=10)
    assert asked == [("someone/animals", None), ("someone/animals", "refs/convert/parquet")]
    local = load_dataset(str(animals), shuffle_buffer=10)
    assert torch.equal(hub.train.inputs[:], local.train.inputs[:]) and torch.equal(hub.test.target, local.test.target)


def streamed(sizes, buffer, rows=None):
    """Inputs of shards of these sizes, whose contents are their row's number; and how often each shard was read."""
    reads = Counter()

    def read(shard):
        reads[shard] += 1
        return [bytes([row % 256]) for row in range(sum(sizes[:shard]), sum(sizes[: shard + 1]))]

    class Part:
        target, name = torch.zeros(sum(sizes)), str

    Part.sizes, Part.read = sizes, staticmethod(read)
    starts = torch.tensor([0, *sizes]).cumsum(0)
    source = Shards("x", "image", "x", ("a",), Part.target, None, None, starts, "", _Reader([Part]))
    rows = torch.arange(sum(sizes)) if rows is None else rows
    return Streamed(source, rows, Pixels(1, 1, 1), torch.Size((len(rows), 1, 1, 1)), torch.uint8, buffer), reads


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any),
    buffer=st.integers(1, 100),
    batch=st.integers(1, 6),
    processes=st.integers(1, 4),
    seed=st.integers(0, 5),
)
def test_an_epoch_has_every_sample_once_but_for_an_incomplete_batch(sizes, buffer, batch, processes, seed):
    inputs, _ = streamed(sizes, buffer, torch.arange(sum(sizes))[::2])
    order = inputs.order(torch.Generator().manual_seed(seed), batch, processes)
    assert len(order) == len(inputs) // batch * batch == len(order.unique()) and bool((order < len(inputs)).all())
    assert torch.equal(order, inputs.order(torch.Generator().manual_seed(seed), batch, processes))


def test_each_process_reads_its_own_shards_and_each_about_once():
    sizes, buffer, batch, processes = [20] * 60, 100, 12, 3
    inputs, reads = streamed(sizes, buffer)
    order = inputs.order(torch.Generator().manual_seed(0), batch, processes).view(-1, batch)
    read = []
    for process in range(processes):
        inputs, reads = streamed(sizes, buffer)
        for index in order[:, process::processes]:
            assert inputs.encoded(index) == [bytes([row % 256]) for row in index.tolist()]
            assert inputs.source.reader.held_rows <= 2 * buffer
        # A piece of 400 is 20 shards, of which those at its ends are cut, and its end comes at its beginning, too.
        assert reads.total() <= 20 + 1 + 2 + buffer // 20
        read.append(set(reads))
    assert set.union(*read) == set(range(60)) and sum(map(len, read)) <= 60 + processes


def test_each_batch_is_a_random_sample_of_as_many_samples_as_the_buffer_holds():
    inputs, _ = streamed([10] * 1000, buffer=1000)
    inputs = [inputs.order(torch.Generator().manual_seed(seed), 50) for seed in (0, 1)]
    # Shards in a random order: what stood together at first does so no more.
    order = inputs[0].view(-1, 50)
    shards = (order // 10).sort(1).values
    alone = 1 + (shards.diff(dim=1) > 0).sum(1).double()
    # Out of 100 shards of ten, without replacement: 100 (1 - C(990, 50) / C(1000, 50)) = 40.3 of them on average.
    assert abs(alone.mean() - 40.3) < 0.5 and alone.min() > 30
    assert not torch.equal(*inputs)


def test_a_buffer_as_large_as_the_data_set_makes_every_order_equally_likely():
    inputs, _ = streamed([2, 2], buffer=100)
    generator = torch.Generator().manual_seed(0)
    counts = Counter(tuple(inputs.order(generator, 1).tolist()) for _ in range(2400))
    assert len(counts) == 24 and max(abs(count - 100) for count in counts.values()) < 45


def test_batches_are_decoded_ahead_in_their_order(animals):
    inputs = load_dataset(str(animals), shuffle_buffer=10).train.inputs
    batches = torch.split(inputs.order(torch.Generator().manual_seed(0), 5), 5)
    found = list(read_ahead(inputs, batches))
    assert [index.tolist() for index, _ in found] == [index.tolist() for index in batches]
    assert all(torch.equal(decoded, inputs[index]) for index, decoded in found)
    assert len(inputs[:0]) == 0 and inputs[:0].shape[1:] == inputs.shape[1:]


def test_a_part_of_a_stream_is_read_from_few_shards(animals):
    train = load_dataset(str(animals), shuffle_buffer=10).train
    part = some(train, 20, seed=0)
    assert len(part.target) == 20 and torch.equal(train.target[torch.searchsorted(train.rows, part.rows)], part.target)
    assert len(train.inputs.source.shard_of(part.rows).unique()) <= 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shuffle_buffer": 0}, "--shuffle-buffer 0: must be at least 1 sample"),
        ({"shuffle_buffer": 5, "on_error": "skip"}, "--on-error skip: a stream is not looked through"),
        ({"shuffle_buffer": 5, "test_group": "x"}, "animals has no groups"),
    ],
)
def test_what_does_not_go_with_a_stream_is_named(animals, options, message):
    with pytest.raises(DataError, match=message):
        load_dataset(str(animals), **options)
    with pytest.raises(DataError, match="leave --stream out"):
        load_dataset("digits", shuffle_buffer=5)


def test_damage_is_named_where_it_is(animals):
    whole = (animals / "train-1.parquet").read_bytes()
    (animals / "train-1.parquet").write_bytes(whole[:-4])
    with pytest.raises(DataError, match=r"train-1.parquet: not a readable parquet file"):
        load_dataset(str(animals), shuffle_buffer=5)
    rows = table(40, 1).to_pylist()
    rows[36]["image"]["bytes"] = b"not an image"  # of a row group 32 rows are looked at in the beginning
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), animals / "train-1.parquet")
    data = load_dataset(str(animals), shuffle_buffer=5)
    with pytest.raises(DataError, match=r"animals/train-1.parquet row 36: cannot be decoded"):
        list(read_ahead(data.train.inputs, torch.arange(70).split(5)))
    rows[36]["label"] = None
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), animals / "train-1.parquet")
    with pytest.raises(DataError, match="row 36 has no label in column 'label'"):
        load_dataset(str(animals), shuffle_buffer=5)
