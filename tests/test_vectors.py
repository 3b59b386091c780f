"""Embeddings of a whole source in a file: whole or not at all, and searched."""

import numpy as np
import pyarrow.parquet
import pytest

from cssoftmax import jobs, vectors
from cssoftmax.data import DataError, open_stream
from cssoftmax.embedder import Embedder
from cssoftmax.runs import JobError, Source
from cssoftmax.training import Interrupted


@pytest.fixture
def photos(make_photos):
    return make_photos()


@pytest.fixture
def embedder(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(vectors, "PART", 5)
    changes = {"width": 2, "embedding_size": 4, "epochs": 1, "batch_size": 8}
    run = jobs.train(Source(str(photos), cache_dir=tmp_path / "cache"), tmp_path / "run", recipe_changes=changes)
    return Embedder.load(run)


def test_ids_labels_and_vectors_of_all_samples(embedder, photos, tmp_path):
    output, seen = tmp_path / "out" / "photos.parquet", []
    stream = open_stream(str(photos))
    assert vectors.write_vectors(embedder, stream, output, on_progress=lambda *done: seen.append(done)) == 24
    table = pyarrow.parquet.read_table(output)
    items = list(stream.items())
    assert table.column("id").to_pylist() == [item.id for item in items]
    assert table.column("label").to_pylist() == [item.label for item in items]
    expected = embedder.embed([item.data for item in items])
    np.testing.assert_allclose(np.stack(table.column("vector").to_numpy()), expected, atol=1e-6)
    assert seen == [(5, 24), (10, 24), (15, 24), (20, 24), (24, 24)]
    assert [path.name for path in output.parent.iterdir()] == ["photos.parquet"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_embedding_goes_on_and_never_shows_half_a_file(embedder, photos, tmp_path, monkeypatch, stop):
    output, stream = tmp_path / "out.parquet", open_stream(str(photos))
    vectors.write_vectors(embedder, stream, tmp_path / "whole.parquet")

    def interrupt(done, total):
        if done == 10:
            raise stop

    with pytest.raises(Interrupted if stop is KeyboardInterrupt else SystemExit):
        vectors.write_vectors(embedder, stream, output, on_progress=interrupt)
    assert not output.exists()
    embedded, embed = [], Embedder.embed

    def counting(self, items, **options):
        embedded.append(len(items))
        return embed(self, items, **options)

    monkeypatch.setattr(Embedder, "embed", counting)
    assert vectors.write_vectors(embedder, stream, output) == 24
    assert sum(embedded) == 14
    assert pyarrow.parquet.read_table(output) == pyarrow.parquet.read_table(tmp_path / "whole.parquet")
    assert vectors.write_vectors(embedder, stream, output) == 24
    assert sum(embedded) == 14


def test_parts_of_another_source_are_not_gone_on_with(embedder, photos, tmp_path):
    output = tmp_path / "out.parquet"

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="5 of 24 are embedded; the same command goes on"):
        vectors.write_vectors(embedder, open_stream(str(photos)), output, on_progress=interrupt)
    (photos / "day" / "0.png").unlink()
    assert vectors.write_vectors(embedder, open_stream(str(photos)), output) == 23
    assert "day/0.png" not in pyarrow.parquet.read_table(output).column("id").to_pylist()


def test_a_sample_that_cannot_be_decoded_is_named_and_the_rest_is_kept(embedder, photos, tmp_path):
    (photos / "night" / "5.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"night/5.png: cannot be decoded"):
        vectors.write_vectors(embedder, open_stream(str(photos)), tmp_path / "out.parquet")
    assert len(list((tmp_path / ".out.parquet.parts").glob("*.parquet"))) == 3


def test_search_finds_the_nearest_by_cosine_over_all_rows(embedder, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(vectors, "ROWS", 7)
    output = tmp_path / "out.parquet"
    vectors.write_vectors(embedder, open_stream(str(photos)), output)
    query = photos / "night" / "3.png"
    hits = vectors.search(embedder, query, output, count=6)
    items = list(open_stream(str(photos)).items())
    cosines = embedder.embed([item.data for item in items]) @ embedder.embed([query])[0]
    order = np.argsort(-cosines)[:6]
    assert hits[0].cosine == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose([hit.cosine for hit in hits], cosines[order], atol=1e-6)
    assert len(vectors.search(embedder, query, output, count=100)) == 24


def test_files_of_other_origin_are_refused(embedder, photos, tmp_path):
    output = tmp_path / "notes.parquet"
    output.write_text("precious")
    with pytest.raises(JobError, match=r"notes.parquet: is not a file of embeddings and would be overwritten"):
        vectors.write_vectors(embedder, open_stream(str(photos)), output)
    assert output.read_text() == "precious"
    query = photos / "day" / "0.png"
    with pytest.raises(JobError, match=r"notes.parquet: not a file of embeddings"):
        vectors.search(embedder, query, output)
    with pytest.raises(JobError, match=r"missing.parquet: no such file"):
        vectors.search(embedder, query, tmp_path / "missing.parquet")
    made = tmp_path / "made.parquet"
    vectors.write_vectors(embedder, open_stream(str(photos)), made)
    embedder.digest = "another"
    with pytest.raises(JobError, match=r"made.parquet: was made with other weights"):
        vectors.search(embedder, query, made)
