"""A comparison's report: which differences are real, in a table, a picture and plain words."""

import json
import re
from itertools import combinations
from pathlib import Path

import pytest

from cssoftmax.comparison.outcome import outcome
from cssoftmax.report import box_plot, conclusion, difference_table, group_table, summary_table, write_comparison

ROOT = Path(__file__).parents[2]

ACCURACY = {
    "softmax": (0.900, 0.904, 0.902, 0.899, 0.903),
    "cs-softmax": (0.911, 0.913, 0.912, 0.911, 0.913),
    "cosface": (0.901, 0.903, 0.903, 0.898, 0.902),
    "circle": (0.850, 0.852, 0.855, 0.849, 0.851),
}


@pytest.fixture
def compared():
    def make(losses=tuple(ACCURACY), seeds=5, **changes):
        settings = {
            "source": "digits",
            "dataset": "digits",
            "classes": 10,
            "losses": list(losses),
            "protocol": "closed",
            "seeds": seeds,
            "tune": 0,
            "recipe": {"network": "lenet", "epochs": 3, "lr": 0.1, "augment": {"flip": True}},
            "seed": 0,
            "amp": "no",
            "cpu": True,
            "image_size": None,
            "groups": [None],
            "held_out_classes": [],
        } | changes
        runs = [
            {
                "loss": loss,
                "group": group,
                "seed": seed,
                "measures": {
                    "accuracy": ACCURACY[loss][seed],
                    "eer": 0.5 - ACCURACY[loss][seed] / 2,
                    "inter_class_degrees_mean": 40 + 20 * ACCURACY[loss][seed],
                    "inter_class_degrees_min": float("nan"),
                    "verification_pairs": 100.0,
                },
                "settings": {} if loss == "softmax" else {"scale": 9.1, "margin": 0.1},
                "lr": 0.1,
                "device": "a processor",
                "seconds": 1.0,
            }
            for loss in losses
            for group in settings["groups"]
            for seed in range(seeds)
        ]
        return outcome(settings, {"epochs": 3}, [], runs)

    return make


def verdicts(result, key="accuracy"):
    return {loss: difference["verdict"] for loss, difference in result["differences"][key].items()}


def test_real_differences_are_told_from_noise_in_the_sense_of_the_measure(compared):
    result = compared()
    expected = {"cs-softmax": "better", "cosface": "noise", "circle": "worse"}
    assert verdicts(result) == verdicts(result, "eer") == verdicts(result, "inter_class_degrees_mean") == expected
    assert conclusion(result, "accuracy") == (
        "Accuracy: over 5 seeds, cs-softmax (+1.04 points) is really better than softmax, circle (-5.02 points) is "
        "really worse than softmax and what sets cosface (-0.02 points) apart from softmax may be noise."
    )
    # The smaller error rate is the better one and comes first.
    assert "cs-softmax (-0.52 points) is really better" in conclusion(result, "eer")
    assert [row[0] for row in difference_table(result, "eer")[1:]] == ["cs-softmax", "cosface", "circle"]


def test_p_is_corrected_for_the_number_of_losses(compared):
    alone = compared(losses=("softmax", "cosface"))["differences"]["accuracy"]["cosface"]
    assert alone["p"] == alone["corrected_p"]
    among = compared()["differences"]["accuracy"]
    assert among["cosface"]["p"] == alone["p"]
    assert among["cs-softmax"]["corrected_p"] == pytest.approx(2 * among["cs-softmax"]["p"])
    assert among["circle"]["corrected_p"] == pytest.approx(3 * among["circle"]["p"])


def test_one_seed_is_never_called_real(compared, tmp_path):
    result = compared(seeds=1)
    assert set(verdicts(result).values()) == {"untested"}
    assert "may be real or noise" in conclusion(result, "accuracy") and "1 seed," in conclusion(result, "accuracy")
    text = write_comparison(result, tmp_path).read_text()
    assert "One seed says nothing about noise" in text and "▲" not in text.split("## Measures")[1].split("Mean ±")[0]


def test_with_three_seeds_the_report_says_how_little_they_can_show(compared, tmp_path):
    assert "more than 4.3 standard errors" in write_comparison(compared(seeds=3), tmp_path).read_text()


def test_what_the_data_do_not_define_is_left_open(compared):
    result = compared()
    assert result["differences"]["inter_class_degrees_min"] == {}
    assert conclusion(result, "inter_class_degrees_min").endswith("not defined on these data.")
    assert {row[0]: row[1:] for row in summary_table(result)}["Angle to nearest other class centre, min"] == ["n/a"] * 4
    assert "verification_pairs" not in result["differences"]
    json.dumps(result, allow_nan=False)


def test_the_report_holds_table_differences_picture_and_command(compared, tmp_path):
    result = compared()
    text = write_comparison(result, tmp_path).read_text()
    assert (tmp_path / "comparison.png").read_bytes()[1:4] == b"PNG"
    assert "![" in text and "](comparison.png)" in text
    assert "| Accuracy | 90.16 ± 0.21 % | **91.20 ± 0.10 % ▲** | 90.14 ± 0.21 % | 85.14 ± 0.23 % ▼ |" in text
    row = next(line for line in text.splitlines() if line.startswith("| cs-softmax | +1.04 points"))
    assert re.fullmatch(r"\| .* \| \+0\.\d\d to \+1\.\d\d points \| .* \| .* \| better \|", row)
    assert "cssoftmax compare digits --losses softmax,cs-softmax,cosface,circle --protocol closed --seeds 5" in text
    assert "20 runs, after 0 trials" in text and "3 epochs" in text
    before = text, (tmp_path / "comparison.png").read_bytes()
    write_comparison(result, tmp_path)
    assert before == ((tmp_path / "comparison.md").read_text(), (tmp_path / "comparison.png").read_bytes())


def test_the_picture_has_a_panel_a_measure_and_every_seed_as_a_dot(compared):
    figure = box_plot(compared())
    panels = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left") for axes in panels][:2] == ["Accuracy", "EER"]
    dots = [tuple(round(x, 6) for x in dot.get_offsets()[:, 0].tolist()) for dot in panels[0].collections]
    assert dots == [tuple(round(100 * value, 6) for value in values) for values in ACCURACY.values()]


def test_no_title_reaches_into_the_next_panel_or_over_the_edge():
    result = json.loads((ROOT / "results" / "comparisons" / "cifar100-open" / "comparison.json").read_text())
    figure = box_plot(result)
    figure.draw_without_rendering()
    boxes = [axes._left_title.get_window_extent() for axes in figure.axes if axes.get_title(loc="left")]
    assert len(boxes) == 3 and all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def test_held_out_classes_and_rotations_are_named(compared, tmp_path):
    text = write_comparison(compared(held_out_classes=["a|b", "c"], protocol="verification"), tmp_path).read_text()
    assert r"Held out of training: 2 of 10 classes (a\|b, c)" in text
    text = write_comparison(compared(groups=["1", "2"]), tmp_path).read_text()
    assert "Tested on each of 1, 2 in turn" in text


def test_every_rotation_has_its_row(compared, tmp_path):
    result = compared(groups=["1", "a|b"])
    result["by_group"]["accuracy"]["circle"] = [0.8, None]
    assert group_table(result, "accuracy") == [
        ["tested on", "softmax", "cs-softmax", "cosface", "circle"],
        ["1", "90.16 %", "91.20 %", "90.14 %", "80.00 %"],
        ["a|b", "90.16 %", "91.20 %", "90.14 %", "n/a"],
    ]
    text = write_comparison(result, tmp_path).read_text()
    assert r"| a\|b | 90.16 % | 91.20 % | 90.14 % | n/a |" in text
    del result["by_group"]  # a comparison.json of an earlier version
    assert "Each fold or speaker" not in write_comparison(result, tmp_path).read_text()
    assert "Each fold or speaker" not in write_comparison(compared(), tmp_path).read_text()
