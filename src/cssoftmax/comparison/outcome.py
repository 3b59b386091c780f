"""What came out: means over seeds, paired differences, and all that is needed to make them again."""

import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from cssoftmax import metrics
from cssoftmax.comparison import tuning
from cssoftmax.comparison.protocol import HEADLINES
from cssoftmax.comparison.trainings import Line
from cssoftmax.runs import versions

BASELINE = "softmax"
LEVEL = 0.05


def outcome(
    settings: Mapping[str, Any], changes: Mapping[str, Any], trials: Sequence[Line], runs: Sequence[Line]
) -> dict[str, Any]:
    """The content of ``comparison.json``.

    Args:
        settings: the comparison's, as in ``settings.json``.
        changes: what of the recipe was asked for.
        trials, runs: all lines; those of other losses do not count.
    """
    names, groups = settings["losses"], settings["groups"]
    seeds = range(settings["seed"], settings["seed"] + settings["seeds"])
    baseline = BASELINE if BASELINE in names else names[0]
    trials = [line for line in trials if line["loss"] in names]
    found = {(line["loss"], line["group"], line["seed"]): line for line in runs if line["loss"] in names}
    first = found[names[0], groups[0], seeds[0]]["measures"]
    table: dict[str, dict[str, Any]] = {}
    by_group: dict[str, dict[str, list[float | None]]] = {}
    differences: dict[str, dict[str, Any]] = {}
    for measure in (*metrics.MEASURES, *metrics.OPTIONAL_MEASURES):
        if measure.key not in first:
            continue
        values = {
            loss: [
                statistics.fmean(found[loss, group, seed]["measures"][measure.key] for group in groups)
                for seed in seeds
            ]
            for loss in names
        }
        table[measure.key] = {loss: _summary(numbers) for loss, numbers in values.items()}
        if len(groups) > 1:
            by_group[measure.key] = {
                loss: [
                    _finite(statistics.fmean(found[loss, group, seed]["measures"][measure.key] for seed in seeds))
                    for group in groups
                ]
                for loss in names
            }
        if measure.higher_is_better is not None:
            differences[measure.key] = _differences(values, baseline, measure.higher_is_better)
    return {
        "dataset": settings["dataset"],
        "protocol": settings["protocol"],
        "baseline": baseline,
        "losses": names,
        "seeds": list(seeds),
        "epochs": settings["recipe"]["epochs"],
        "tune": settings["tune"],
        "trials": len(trials),
        "runs": len(names) * len(groups) * len(seeds),
        "classes": settings["classes"],
        "groups": groups,
        "held_out_classes": settings["held_out_classes"],
        "headlines": list(HEADLINES[settings["protocol"]]),
        "level": LEVEL,
        "measures": table,
        "by_group": by_group,
        "differences": differences,
        "settings": {loss: [_chosen(found[loss, group, seeds[0]], trials) for group in groups] for loss in names},
        "recipe": settings["recipe"],
        "amp": settings["amp"],
        "command": command(settings, changes),
        "devices": sorted({line["device"] for line in found.values()}),
        "versions": versions(),
    }


def command(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> str:
    """The command line that makes the comparison; where to is left to whoever runs it.

    >>> settings = {"source": "digits", "losses": ["softmax", "cosface"], "protocol": "open", "seeds": 3, "tune": 0}
    >>> command(settings | {"seed": 0, "amp": "no", "cpu": False, "image_size": None}, {"batch_size": 32})
    'cssoftmax compare digits --losses softmax,cosface --protocol open --seeds 3 --batch-size 32'
    """
    words = ["cssoftmax", "compare", settings["source"], "--losses", ",".join(settings["losses"])]
    words += ["--protocol", settings["protocol"], "--seeds", settings["seeds"]]
    flags = {name: settings[name] for name in ("tune", "image_size", "seed") if settings[name]} | dict(changes)
    if "variant" in flags:
        flags["recipe"] = flags.pop("variant")
    if settings["amp"] != "no":
        flags["amp"] = settings["amp"]
    if settings.get("on_error") == "skip":
        flags["on_error"] = "skip"
    words += [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", value)]
    switches = [f"--{name.replace('_', '-')}" for name in ("by_group", "cpu") if settings.get(name)]
    return shlex.join([*map(str, words), *switches])


def _summary(values: Sequence[float]) -> dict[str, Any]:
    finite = all(map(math.isfinite, values))
    return {
        "mean": statistics.fmean(values) if finite else None,
        "std": statistics.stdev(values) if finite and len(values) > 1 else None,
        "values": [value if math.isfinite(value) else None for value in values],
    }


def _differences(values: Mapping[str, Sequence[float]], baseline: str, higher_is_better: bool) -> dict[str, Any]:
    """Every loss less the baseline; p is corrected for the number of losses, measure by measure."""
    found = {
        loss: metrics.paired_difference(numbers, values[baseline])
        for loss, numbers in values.items()
        if loss != baseline and all(map(math.isfinite, (*numbers, *values[baseline])))
    }
    corrected = metrics.holm([difference.p for difference in found.values()])
    return {
        loss: {
            "mean": difference.mean,
            "low": _finite(difference.low),
            "high": _finite(difference.high),
            "p": _finite(difference.p),
            "corrected_p": _finite(p),
            "verdict": _verdict(difference.mean, p, higher_is_better),
        }
        for (loss, difference), p in zip(found.items(), corrected, strict=True)
    }


def _verdict(mean: float, p: float, higher_is_better: bool) -> str:
    if math.isnan(p):
        return "untested"
    if p >= LEVEL:
        return "noise"
    return "better" if (mean > 0) == higher_is_better else "worse"


def _chosen(run: Line, trials: Sequence[Line]) -> dict[str, Any]:
    """The settings of a loss on a rotation, and the score that they were chosen by."""
    own = [line for line in trials if (line["loss"], line["group"]) == (run["loss"], run["group"])]
    chosen = {key: run[key] for key in ("group", "settings", "lr")}
    return chosen | {"validation_score": tuning.best(own)["score"] if own else None}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
