"""What a comparison trains on, tests on and validates on."""

from dataclasses import replace

import pytest
import torch

from cssoftmax import runs
from cssoftmax.comparison.protocol import design_of, test_part, validation_part
from cssoftmax.data import DataError

test_part.__test__ = False
SOURCE = runs.Source("toy")
PROTOCOLS = ("closed", "open", "verification")


def design(protocol, seed=0):
    return design_of(SOURCE.load(seed), protocol, seed)


def marks(split):
    """(class, speaker) of every sample, as its first two pixels say."""
    return {tuple(pair) for pair in split.inputs[:, 0, 0, :2].tolist()}


def test_a_closed_comparison_uses_the_official_split(use_data):
    use_data(speakers="in both splits")
    assert design("closed").groups == (None,) and design("closed").held_out_classes == ()
    assert len(test_part(SOURCE, design("closed"), None, 0).known.test.target) == 40


def test_folds_are_tested_in_turn_and_trials_validate_on_another_fold(use_data):
    use_data(speakers="as folds")
    plan = design("closed")
    assert plan.groups == ("0", "1", "2", "3")
    for group in plan.groups:
        part, trial = test_part(SOURCE, plan, group, 0), validation_part(SOURCE, plan, group, 0)
        assert set(part.known.test.groups) == {group} and group not in part.known.train.groups
        assert len(set(trial.known.test.groups)) == 1 and len(set(trial.known.train.groups)) == 2
        assert set(trial.known.test.groups) | set(trial.known.train.groups) == set(plan.groups) - {group}


def test_speakers_are_verified_in_turn_without_having_been_trained_on(use_data):
    use_data(speakers="in both splits")
    plan = design("verification")
    assert plan.groups == ("0", "1", "2", "3") and plan.held_out_classes == ()
    part = test_part(SOURCE, plan, "2", 0)
    assert part.unknown is None and {speaker for _, speaker in marks(part.known.test)} == {2}
    assert {speaker for _, speaker in marks(part.known.train)} == {0, 1, 3}


@pytest.mark.parametrize("protocol", ["open", "verification"])
@pytest.mark.parametrize("seed", [0, 1])
def test_held_out_classes_are_never_trained_on(use_data, protocol, seed):
    use_data()
    plan = design(protocol, seed)
    held_out = {int(name.split()[1]) for name in plan.held_out_classes}
    assert len(held_out) == 2
    part, trial = test_part(SOURCE, plan, None, seed), validation_part(SOURCE, plan, None, seed)
    assert {label for label, _ in marks(part.unknown)} == held_out
    inner = {label for label, _ in marks(trial.unknown)}
    assert len(inner) == 2 and not inner & held_out
    assert {label for label, _ in marks(part.known.train)} == set(range(10)) - held_out
    assert {label for label, _ in marks(trial.known.train)} == set(range(10)) - held_out - inner
    for known, count in ((part.known, 8), (trial.known, 6)):
        assert len(known.classes) == count and set(known.train.target.tolist()) == set(range(count))
        # A class's new number still names it.
        assert [int(known.classes[label].split()[1]) for label in known.train.target] == known.train.inputs[
            :, 0, 0, 0
        ].tolist()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("speakers", [None, "in both splits", "as folds"])
def test_trials_see_nothing_of_what_is_tested(use_data, noise, protocol, speakers):
    use_data(speakers=speakers)
    plan = design(protocol)
    group = plan.groups[0]
    honest = validation_part(SOURCE, plan, group, 0)

    def poison(dataset):
        out = torch.tensor([name in plan.held_out_classes for name in dataset.classes])
        test = noise(dataset.test, torch.ones(len(dataset.test.target), dtype=torch.bool))
        test = replace(test, target=test.target.flip(0))
        return replace(dataset, train=noise(dataset.train, out[dataset.train.target]), test=test)

    use_data(speakers=speakers, poison=poison)
    poisoned = validation_part(SOURCE, plan, group, 0)
    splits = [(honest.known.train, poisoned.known.train), (honest.known.test, poisoned.known.test)]
    splits += [(honest.unknown, poisoned.unknown)] if honest.unknown else []
    for one, other in splits:
        assert torch.equal(one.inputs, other.inputs) and torch.equal(one.target, other.target)


def test_of_cifar100_every_fifth_class_is_held_out(use_data):
    use_data(name="cifar100")
    dataset = replace(SOURCE.load(0), classes=tuple(f"class {index}" for index in range(100)))
    held_out = design_of(dataset, "verification", 0).held_out_classes
    assert held_out == tuple(f"class {index}" for index in range(4, 100, 5))
    assert held_out == design_of(dataset, "open", 7).held_out_classes


def test_three_classes_are_too_few_to_hold_two_out(use_data):
    use_data()
    with pytest.raises(DataError, match="3 classes are too few"):
        design_of(replace(SOURCE.load(0), classes=("a", "b", "c")), "open", 0)
