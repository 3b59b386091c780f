"""The page: whole or not written, the same for the same runs, and nothing in it from the data is code."""

import json
import re

import pytest
import torch

from cssoftmax.metrics import MEASURES, format_value
from cssoftmax.report import RunError, load_run, page, write_report

MEASURE = {measure.key: measure for measure in MEASURES}


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Without the two megabytes of plotly.js, and without t-SNE."""
    monkeypatch.setattr(page, "_plotly", lambda: "cGxvdGx5")
    monkeypatch.setattr(page.facts, "MAX_POINTS", 30)


def rows_of(text):
    """Each row of the page's tables as the texts of its cells."""
    rows = re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL)
    return [
        [" ".join(re.sub(r"<[^>]*>", " ", cell).split()) for cell in re.split(r"<td[^>]*>", row)[1:]] for row in rows
    ]


def row_of(text, key):
    (row,) = [row for row in rows_of(text) if row and row[0].startswith(MEASURE[key].title + " ")]
    return row[1:]


def data_of(text):
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])


def test_runs_side_by_side_with_the_difference_to_the_first(make_run, tmp_path):
    a, b = make_run("a"), make_run("b", measures={"accuracy": 0.95, "nll": 0.5, "eer": 0.05})
    text = write_report([a, b], tmp_path / "report").read_text()
    assert row_of(text, "accuracy") == [format_value(MEASURE["accuracy"], 0.9), "95.00 % +5.00 points ▲"]
    assert row_of(text, "nll")[1].endswith("+0.2500 nats ▼")
    assert row_of(text, "eer") == ["5.00 %", "5.00 %"]
    assert row_of(text, "map_at_r") == ["–", "–"]
    assert text.count('class="best"') == 2
    alone = write_report([a], tmp_path / "alone").read_text()
    assert 'class="best"' not in alone and "▲" not in row_of(alone, "accuracy")[0]


def test_runs_on_different_data_are_not_ranked(make_run, tmp_path):
    a, b = make_run("a"), make_run("b", classes=5, measures={"accuracy": 0.95})
    text = write_report([a, b], tmp_path / "report").read_text()
    assert "measured on different data" in text and 'class="best"' not in text and "points ▲" not in text


def test_nothing_from_the_data_is_markup(make_run, tmp_path):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    folder = make_run("we<i>rd & <b>", names=[evil, "'\"", "&amp;", "{{ 1 + 1 }}"], noise=2.0)
    text = write_report([folder], tmp_path / "report").read_text()
    for piece in ("<script>alert", "<img src=x", "we<i>rd", "<b>."):
        assert piece not in text
    assert "we&lt;i&gt;rd &amp; &lt;b&gt;" in text and "{{ 1 + 1 }}" in text
    assert data_of(text)["runs"][0]["classes"][0] == evil
    assert text.count("<script") == 3  # data, plotly, ours


def test_the_page_asks_for_nothing_from_outside(make_run, tmp_path):
    text = write_report([make_run(shown=20)], tmp_path / "report").read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:)[^"']+""", text)
    assert "@import" not in text and "url(" not in text


def test_samples_are_in_the_page_once_however_often_they_are_shown(make_run, tmp_path):
    a, b = make_run("a", shown=120), make_run("b", shown=120)
    data = data_of(write_report([a, b], tmp_path / "report").read_text())
    assert 30 <= len(data["media"]) == len(set(data["media"])) <= 120
    assert data["runs"][0]["map"]["media"] == data["runs"][1]["map"]["media"]
    assert data["runs"][0]["kind"] == "image" and all(
        uri.startswith("data:image/webp;base64,") for uri in data["media"]
    )
    assert None not in data["runs"][0]["map"]["media"]


def test_runs_without_samples_are_shown_without_them(make_run, tmp_path):
    text = write_report([make_run()], tmp_path / "report").read_text()
    assert "kept no samples" in text and data_of(text)["runs"][0]["kind"] is None and "data-media=" not in text


def test_sounds_have_a_button(make_run, tmp_path, write_samples):
    folder = make_run()
    write_samples(folder, range(120), [bytes([index]) for index in range(120)], "audio/mpeg")
    text = write_report([folder], tmp_path / "report").read_text()
    assert data_of(text)["runs"][0]["kind"] == "sound" and 'class="play"' in text and "<img" not in text


def test_pictures_and_sounds_on_one_page_are_each_what_they_are(make_run, tmp_path, write_samples):
    seen, heard = make_run("seen", shown=120), make_run("heard", seed=1)
    write_samples(heard, range(120), [bytes([index]) for index in range(120)], "audio/mpeg")
    text = write_report([seen, heard], tmp_path / "report").read_text()
    media = data_of(text)["media"]
    for tag, kind in (("<img", "data:image/webp"), ("<button", "data:audio/mpeg")):
        shown = re.findall(tag + r"[^>]*data-media=\"(\d+)\"", text)
        assert shown and all(media[int(place)].startswith(kind) for place in shown)


@pytest.mark.parametrize(
    ("rows", "encoded", "kind"), [([0, 500], [b"a", b"b"], "image/webp"), ([0], [b"a"], "text/html")]
)
def test_samples_that_do_not_fit_the_run_are_an_error(make_run, write_samples, rows, encoded, kind):
    folder = make_run()
    write_samples(folder, rows, encoded, kind)
    with pytest.raises(RunError, match=r"samples\.safetensors: damaged"):
        load_run(folder)


def test_the_explorer_starts_at_the_factors_of_the_run(make_run, tmp_path):
    text = write_report([make_run()], tmp_path / "report").read_text()
    assert data_of(text)["explorer"] == {"margin": 0.2, "weightUpdate": 0.5, "scale": 30.0, "classes": 4}
    text = write_report([make_run("other", loss={"name": "softmax"})], tmp_path / "report").read_text()
    assert data_of(text)["explorer"]["margin"] == 0.15


def test_of_many_classes_the_least_accurate_are_in_the_table(make_run, tmp_path):
    text = write_report([make_run(classes=30, samples=300)], tmp_path / "report").read_text()
    assert "the 20 least accurate of 30 classes" in text
    assert len([row for row in rows_of(text) if row and row[0].startswith("class ")]) == 20


def test_the_same_runs_give_the_same_page(make_run, tmp_path, monkeypatch):
    monkeypatch.setattr(page.facts, "MAX_POINTS", 40)
    run = make_run(shown=40)
    one, two = (write_report([run], tmp_path / name).read_bytes() for name in ("one", "two"))
    assert one == two


def test_the_page_has_the_name_it_is_given(make_run, tmp_path):
    run = make_run()
    assert write_report([run], tmp_path / "new" / "mine.html") == tmp_path / "new" / "mine.html"
    assert write_report([run], run) == run / "report.html"


def test_a_page_that_cannot_be_made_leaves_the_old_one(make_run, tmp_path, monkeypatch):
    path = write_report([make_run()], tmp_path / "report")
    before = path.read_bytes()

    def fail(*_):
        raise RuntimeError("no ink")

    for place in ("cssoftmax.report.facts.classes", "os.fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(place, fail)
            with pytest.raises(RuntimeError, match="no ink"):
                write_report([tmp_path / "run"], tmp_path / "report")
    assert path.read_bytes() == before and [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_no_run_is_a_mistake(tmp_path):
    with pytest.raises(ValueError, match="none given"):
        write_report([], tmp_path)


def test_a_page_of_a_hundred_classes_stays_small(make_run, tmp_path, write_samples):
    folder = make_run(classes=100, size=64, samples=2000)
    generator = torch.Generator().manual_seed(0)
    rows = range(700)  # what a run keeps: 600 at random, pairs, errors and a typical one of each class
    encoded = [bytes(torch.randint(256, (900,), generator=generator).tolist()) for _ in rows]
    write_samples(folder, rows, encoded, "image/webp")
    size = len(write_report([folder, folder], tmp_path / "report").read_bytes())
    assert size < 2_000_000  # and plotly.js adds two
