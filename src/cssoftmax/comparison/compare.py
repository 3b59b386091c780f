"""The comparison as a whole: what is to be trained, what is there already, and what came out.

Trials and runs are written as they finish: a line each in ``trials.jsonl`` and ``runs.jsonl``, and a run folder under
``runs/``. Asked for again, a comparison goes on from there.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args

from cssoftmax import files, metrics, networks, recipes, runs
from cssoftmax.comparison import tuning
from cssoftmax.comparison.outcome import outcome
from cssoftmax.comparison.pool import ComparisonError, perform_all
from cssoftmax.comparison.protocol import HEADLINES, Part, Protocol, design_of, test_part
from cssoftmax.comparison.trainings import Line, Setup, Task, checkpoint
from cssoftmax.losses import LOSSES, build, settings_of
from cssoftmax.training import Interrupted


@dataclass(frozen=True)
class Watcher:
    """What a person sees of a comparison: how many trainings there are, how far they are, and each that is done."""

    on_start: Callable[[str, int], None] = lambda description, trainings: None
    on_progress: Callable[[float], None] = lambda trainings: None
    on_line: Callable[[str], None] = lambda line: None


def compare(
    source: runs.Source,
    output: Path,
    *,
    losses: Sequence[str],
    protocol: Protocol = "closed",
    seeds: int = 5,
    tune: int = 0,
    by_group: bool = False,
    recipe_changes: Mapping[str, Any] | None = None,
    seed: int = 0,
    amp: runs.Amp = "no",
    cpu: bool = False,
    processes: int = 1,
    watcher: Watcher | None = None,
) -> dict[str, Any]:
    """Trains every loss with every seed and returns the comparison; also written to ``comparison.json``.

    For one seed every loss has the same first network weights, the same batches in the same order with the same
    augmentation, the same recipe and the same number of epochs. The weights after the last epoch are measured; nothing
    is chosen on what is tested on.

    Protocols:

    - closed: the data set's own test split, or, where folds are the split, every fold in turn;
    - verification: same or different, on what was not trained on: another speaker, where speakers are in both splits
      (every one in turn), else a fifth of the classes, held out (of cifar100 every fifth in order, else drawn by
      ``seed``), their samples of the test split;
    - open: a fifth of the classes, held out, is to be rejected, by maximum cosine and by maximum probability.

    With ``tune``, each loss first gets so many trials over :data:`cssoftmax.comparison.tuning.SPACE`, each trained on
    one part of the training part and scored on the other in the way of the protocol: another fold or speaker, a fifth
    of the samples, a fifth of the remaining classes. The best trial's settings serve all seeds; of trials of the same
    accuracy the one with the lower equal error rate is better. Rotations are tuned each by itself.

    Args:
        source: without test_group, validation and held_out_classes, which the protocol decides.
        output: the comparison's folder; one that was interrupted is gone on with.
        losses: names; the others are compared with "softmax", or with the first if it is not among them.
        seeds: how many, from ``seed`` on.
        tune: trials a loss (and rotation).
        by_group: hold out every fold or speaker in turn, in whatever protocol.
        recipe_changes: as in :func:`cssoftmax.jobs.train`.
        seed: the first seed; also of trials, of held-out classes and of what they are validated on.
        amp, cpu: as in :func:`cssoftmax.jobs.train`.
        processes: trainings at a time; they share the threads of this one.
        watcher: see there.

    Raises:
        ComparisonError: a setting does not fit, differs from what the comparison in ``output`` was begun with, or a
            training failed.
        cssoftmax.data.DataError, cssoftmax.recipes.RecipeError, cssoftmax.training.Interrupted: as they say.
    """
    _check(losses, protocol, seeds, tune, amp, processes)
    watcher, changes = watcher or Watcher(), dict(recipe_changes or {})
    dataset = source.load(seed)
    recipe = recipes.choose(dataset.name, dataset.kind, **changes)
    networks.find(recipe.network)
    design = design_of(dataset, protocol, seed, by_group=by_group)
    setup = Setup(source, output, protocol, design, changes, seed, amp, cpu)
    settings = {
        "source": source.name,
        "dataset": dataset.name,
        "fingerprint": dataset.fingerprint,
        "classes": len(dataset.classes),
        "losses": list(losses),
        "defaults": _defaults(losses, recipe, len(dataset.classes) - len(design.held_out_classes)),
        "protocol": protocol,
        "seeds": seeds,
        "tune": tune,
        "recipe": asdict(recipe),
        "seed": seed,
        "amp": amp,
        "cpu": cpu,
        "image_size": source.image_size,
        "on_error": source.on_error,
        "by_group": by_group,
        "groups": list(design.groups),
        "held_out_classes": list(design.held_out_classes),
    }
    with files.only_one(output):
        _write_settings(output / "settings.json", settings)
        trials, runs = _Lines(output / "trials.jsonl"), _Lines(output / "runs.jsonl")
        watcher.on_start(
            _description(test_part(source, design, design.groups[0], seed), setup, recipe),
            len(losses) * len(design.groups) * (tune + seeds),
        )
        try:
            _train(setup, losses, seeds, tune, trials, runs, processes, watcher)
        except (KeyboardInterrupt, Interrupted):
            raise Interrupted(f"what was trained is saved in {output}; the same command goes on") from None
        result = outcome(settings, changes, trials.lines, runs.lines)
        files.write_json(output / "comparison.json", result)
    return result


class _Lines:
    """Finished trainings in a file of JSON lines; one that a killed process left half written is dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[Line] = []
        if path.exists():
            content = path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            try:
                self.lines = [dict(json.loads(line)) for line in whole.splitlines()]
            except (ValueError, TypeError) as error:
                raise ComparisonError(f"{path}: damaged ({error}); restore it, or delete it to start anew") from error
            if whole != content:
                files.write_bytes(path, whole)

    def add(self, line: Line) -> None:
        files.append_line(self.path, json.dumps(line))
        self.lines.append(line)

    def of(self, loss: str, group: str | None) -> list[Line]:
        return [line for line in self.lines if (line["loss"], line["group"]) == (loss, group)]


def _train(
    setup: Setup,
    names: Sequence[str],
    seeds: int,
    tune: int,
    trials: _Lines,
    runs: _Lines,
    processes: int,
    watcher: Watcher,
) -> None:
    """Trains all that is not in the files yet."""

    def following(loss: str, group: str | None) -> list[Task]:
        """The next trial, or once there are none all runs that are not done."""
        tried = sorted(trials.of(loss, group), key=lambda line: int(line["number"]))
        if len(tried) < tune:
            earlier = [(line["values"], line["score"]) for line in tried]
            return [Task("trial", loss, group, len(tried), tuning.suggest(loss, earlier, setup.seed))]
        best = tuning.best(tried)["values"] if tried else {}
        done = {line["seed"] for line in runs.of(loss, group)}
        return [
            Task("run", loss, group, number, best)
            for number in range(setup.seed, setup.seed + seeds)
            if number not in done
        ]

    def record(task: Task, line: Line) -> list[Task]:
        (trials if task.kind == "trial" else runs).add(line)
        watcher.on_line(_told(task, line, setup.protocol))
        if task.kind == "run":
            return []
        checkpoint(setup, task).unlink(missing_ok=True)
        return following(task.loss, task.group)

    places = [(loss, group) for group in setup.design.groups for loss in names]
    finished = sum(len(trials.of(*place)) + len(runs.of(*place)) for place in places)
    watcher.on_progress(finished)
    tasks = [task for place in places for task in following(*place)]
    perform_all(
        setup,
        # Seed by seed, so that all losses get on alike.
        sorted(tasks, key=lambda task: task.number),
        record,
        processes=processes,
        on_progress=lambda trainings: watcher.on_progress(finished + trainings),
    )


def _check(names: Sequence[str], protocol: str, seeds: int, tune: int, amp: str, processes: int) -> None:
    if not names:
        raise ComparisonError(f"losses: none given; name some of {', '.join(LOSSES)}")
    for name in names:
        if name not in LOSSES:
            raise ComparisonError(f"losses: {name!r} is not one of {', '.join(LOSSES)}")
        if list(names).count(name) > 1:
            raise ComparisonError(f"losses: {name} is named twice; name it once")
    if len(names) < 2:
        raise ComparisonError(f"losses: {names[0]} alone has nothing to be compared with; name another")
    for setting, value, choices in (("protocol", protocol, get_args(Protocol)), ("amp", amp, get_args(runs.Amp))):
        if value not in choices:
            raise ComparisonError(f"{setting}: {value!r} is not one of {', '.join(choices)}")
    for setting, number, least in (("seeds", seeds, 1), ("tune", tune, 0), ("jobs", processes, 1)):
        if number < least:
            raise ComparisonError(f"{setting}: {number} is below {least}")
    if tune:
        tuning.check()


def _defaults(names: Sequence[str], recipe: recipes.Recipe, num_classes: int) -> dict[str, Any]:
    """What the losses are where nothing is chosen; points of the space are multiples of it."""
    return {name: settings_of(build(name, recipe.embedding_size, num_classes)) for name in names}


def _write_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Writes the settings down, or makes sure that they are those which the comparison was begun with.

    Losses and seeds may be added: the others' trainings know nothing of them. A recipe's setting that is newer than the
    comparison counts as its default there, which is off. What a loss is by default may change between versions.
    """
    now = json.loads(json.dumps(settings))
    if path.exists():
        try:
            off = {each.name: each.default for each in fields(recipes.Recipe) if each.default is not MISSING}
            begun = {**dict.fromkeys(now), **json.loads(path.read_text())}
            before, after = (off | (part.pop("recipe") or {}) | part for part in (dict(begun), dict(now)))
            dropped = [name for name in before["losses"] if name not in after["losses"]]
        except (OSError, ValueError, TypeError) as error:
            raise ComparisonError(f"{path}: damaged ({error}); restore it, or give another --output") from error
        if before["fingerprint"] != after["fingerprint"]:
            raise ComparisonError(
                f"{settings['source']}: the data are not those that the comparison in {path.parent} was begun with; "
                "give another --output"
            )
        if dropped:
            raise ComparisonError(
                f"losses: {', '.join(dropped)} is part of the comparison in {path.parent}; name it too, or give "
                "another --output"
            )
        if after["seeds"] < (before["seeds"] or 0):
            raise ComparisonError(
                f"seeds: {after['seeds']} are fewer than the {before['seeds']} of the comparison in {path.parent}; "
                "give as many, or another --output"
            )
        for key in after:
            if key not in ("losses", "seeds", "defaults") and before.get(key) != after[key]:
                raise ComparisonError(
                    f"{key}: {after[key]}, but the comparison in {path.parent} was begun with {before.get(key)}; give "
                    "that, or another --output"
                )
        for name, begun_with in (before["defaults"] or {}).items():
            for key, value in after["defaults"][name].items():
                if begun_with.get(key) != value:
                    raise ComparisonError(
                        f"{name}: its default {key} is {value}, but the comparison in {path.parent} was begun with "
                        f"{begun_with.get(key)}, by an earlier version; give another --output"
                    )
    files.write_json(path, settings)


def _description(part: Part, setup: Setup, recipe: recipes.Recipe) -> str:
    known = part.known
    parts = [f"{len(known.train.target)} training and {len(known.test.target)} test samples"]
    if part.unknown is not None:
        parts.append(f"{len(part.unknown.target)} of the {len(setup.design.held_out_classes)} held-out classes")
    if len(setup.design.groups) > 1:
        parts.append(f"{len(setup.design.groups)} rotations")
    return f"{known.name}, {setup.protocol}: {', '.join(parts)}; {recipe.network}, {recipe.epochs} epochs"


def _told(task: Task, line: Line, protocol: Protocol) -> str:
    if task.kind == "trial":
        values = ", ".join(f"{name} {value:.3g}" for name, value in line["values"].items())
        failed = f"; {line['failed']}" if "failed" in line else ""
        return f"trial {task.name}: validation score {line['score']:.4f} ({values}){failed}"
    shown = [m for m in (*metrics.MEASURES, *metrics.OPTIONAL_MEASURES) if m.key in HEADLINES[protocol]]
    values = ", ".join(f"{m.key} {metrics.format_value(m, line['measures'][m.key])}" for m in shown)
    return f"run {task.name}: {values}"
