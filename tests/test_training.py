"""The loop on noise and a one-layer network: what each setting does to the weights, and how a training stops."""

import math
import os
import signal
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from cssoftmax import CSSoftmaxLoss, NormFaceLoss, SoftmaxLoss
from cssoftmax.checkpoint import TrainingError, epochs_done
from cssoftmax.classifier import Classifier, averaged_logits, embed
from cssoftmax.data import Split
from cssoftmax.data.augment import ImageAugment, SoundAugment, smaller
from cssoftmax.recipes import Recipe, RecipeError
from cssoftmax.training import Interrupted, fit, flops, learning_rate, muon

BASIC = {"network": "lenet", "width": 1, "embedding_size": 4, "epochs": 2, "batch_size": 8, "lr": 0.1}


@pytest.fixture
def checkpoint(tmp_path):
    return tmp_path / "checkpoint.safetensors"


def split(samples=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randint(0, 256, (samples, 1, 4, 4), generator=generator, dtype=torch.uint8)
    return Split(inputs, torch.arange(samples) % 3, None)


def model():
    torch.manual_seed(0)
    return Classifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.BatchNorm1d(4)), CSSoftmaxLoss(4, 3))


def deeper():
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear(16, 6), nn.BatchNorm1d(6), nn.Linear(6, 4), nn.BatchNorm1d(4)
    return Classifier(nn.Sequential(*layers), CSSoftmaxLoss(4, 3))


def trained(checkpoint, classifier=None, data=None, seed=0, **changes):
    hooks = {key: changes.pop(key) for key in ("on_step", "on_epoch", "resume", "proxy") if key in changes}
    recipe = Recipe(**BASIC | changes)
    accelerator = Accelerator(cpu=True)
    return fit(
        classifier or model(),
        data or split(),
        recipe,
        seed=seed,
        accelerator=accelerator,
        checkpoint=checkpoint,
        **hooks,
    )


def copy(classifier):
    return {name: value.detach().clone() for name, value in classifier.state_dict().items()}


def same(one, other):
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


@given(
    warmup=st.sampled_from([0.0, 0.05, 0.25, 0.9]),
    schedule=st.sampled_from(["one-cycle", "cosine"]),
    steps=st.integers(1, 300),
)
def test_the_learning_rate_rises_to_its_peak_within_the_warm_up_and_falls_to_nothing(warmup, schedule, steps):
    recipe = Recipe(**BASIC | {"warmup": warmup, "schedule": schedule})
    rates = [learning_rate(recipe, step, steps) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    rising = [step for step in range(1, steps) if rates[step] > rates[step - 1]]
    assert not rising or max(rising) <= warmup * steps + 1
    if warmup <= 0.25 and steps >= 40:
        assert max(rates) > 0.9
        assert rates[-1] < 0.05


def test_the_schedules_fall_on_a_line_and_along_half_a_cosine():
    line, cosine = (Recipe(**BASIC | {"warmup": 0.0, "schedule": name}) for name in ("one-cycle", "cosine"))
    for step in (0, 10, 49, 99):
        left = 1 - (step + 0.5) / 100
        assert learning_rate(line, step, 100) == pytest.approx(left)
        assert learning_rate(cosine, step, 100) == pytest.approx(0.5 + 0.5 * math.cos(math.pi * (1 - left)))


def test_the_moving_average_is_the_one_computed_by_hand(checkpoint):
    classifier, weights = model(), []
    averaged = trained(checkpoint, classifier, ema=0.7, on_step=lambda progress: weights.append(copy(classifier)))
    expected = weights[0]
    for step in weights[1:]:
        expected = {
            name: 0.7 * value + 0.3 * step[name] if value.is_floating_point() else step[name]
            for name, value in expected.items()
        }
    for name, value in averaged.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    assert not same(averaged, classifier)


def test_every_fifth_step_weights_and_slow_weights_meet(checkpoint):
    begun, classifier, weights = copy(model()), model(), []
    plain, steps = [], {"epochs": 3}
    trained(checkpoint, fast := model(), on_step=lambda progress: plain.append(copy(fast)), **steps)
    slow = trained(
        checkpoint, classifier, lookahead=0.9, on_step=lambda progress: weights.append(copy(classifier)), **steps
    )
    kept = 0.9 * (4 / 15) ** 3
    for name, value in weights[4].items():
        assert torch.equal(weights[3][name], plain[3][name])
        met = kept * begun[name] + (1 - kept) * plain[4][name] if value.is_floating_point() else plain[4][name]
        torch.testing.assert_close(value, met, rtol=1e-5, atol=1e-6)
        assert torch.equal(weights[14][name], slow.state_dict()[name])  # the last step is a meeting
    assert not all(torch.equal(weights[14][name], value) for name, value in plain[14].items())


def test_a_recipe_cannot_keep_both_an_average_and_slow_weights():
    with pytest.raises(RecipeError, match=r"lookahead: 0\.8 beside ema 0\.9"):
        Recipe(**BASIC | {"lookahead": 0.8, "ema": 0.9})


def test_clipping_bounds_the_norm_of_the_gradient(checkpoint):
    def longest_step(clip_norm):
        classifier, longest = model(), 0.0
        before = [p.detach().clone() for p in classifier.parameters()]

        def on_step(progress):
            nonlocal before, longest
            now = [p.detach().clone() for p in classifier.parameters()]
            moved = sum(float((a - b).square().sum()) for a, b in zip(now, before, strict=True)) ** 0.5
            rate = 0.1 * learning_rate(recipe, progress.step - 1, progress.steps)
            before, longest = now, max(longest, moved / rate)

        settings = {"clip_norm": clip_norm, "momentum": 0.0, "weight_decay": 0.0}
        recipe = Recipe(**BASIC | settings)
        trained(checkpoint, classifier, on_step=on_step, **settings)
        return longest

    assert longest_step(0.0) > 0.5
    assert longest_step(0.05) == pytest.approx(0.05, rel=1e-3)


def test_class_weights_have_their_own_learning_rate_and_no_decay(checkpoint):
    classifier = model()
    before = classifier.loss.weight.detach().clone()
    trained(checkpoint, classifier, class_lr_scale=0.0, weight_decay=0.5)
    assert torch.equal(classifier.loss.weight, before)


def test_muon_turns_the_hidden_weights_and_leaves_the_rest_to_sgd(checkpoint):
    classifier, other = deeper(), deeper()
    hidden, last = classifier.network[1], classifier.network[3]
    length, weights = hidden.weight.norm().item(), [hidden.weight.detach().clone()]
    trained(checkpoint, classifier, muon_lr=0.05, on_step=lambda _: weights.append(hidden.weight.detach().clone()))
    trained(checkpoint.with_name("sgd"), other)
    assert hidden.weight.norm().item() == pytest.approx(length, rel=1e-5)
    angles = [2 * math.asin(float((after - before).norm()) / length / 2) for before, after in pairwise(weights)]
    for step, angle in enumerate(angles):  # with the learning rate
        rate = 0.05 * learning_rate(Recipe(**BASIC), step, 10)
        assert 0.3 * rate < angle < 1.25 * rate
    assert abs(other.network[1].weight.norm().item() - length) > 1e-3
    for moved, start in ((last, deeper().network[3]), (classifier.loss, deeper().loss)):
        assert abs(moved.weight.norm().item() - start.weight.norm().item()) > 1e-4


def test_muon_leaves_weights_that_begin_at_zero_to_sgd(checkpoint):
    classifier = deeper()
    classifier.network.insert(3, nn.Linear(6, 6))
    nn.init.zeros_(classifier.network[3].weight)
    trained(checkpoint, classifier, muon_lr=0.05)
    assert classifier.network[3].weight.any()


def test_muon_needs_a_hidden_layer(checkpoint):
    with pytest.raises(TrainingError, match="muon_lr: the network has no weights before its last layer"):
        trained(checkpoint, muon_lr=0.1)


def test_autocast_lowers_the_network_and_muon_and_leaves_the_loss_in_float32(checkpoint, monkeypatch):
    from accelerate.state import AcceleratorState

    def watched(matrix, plain=muon.orthogonal):
        turned.append(plain(matrix).dtype)
        return plain(matrix)

    AcceleratorState._reset_state(reset_partial_state=True)
    classifier, twin, seen, turned = deeper(), deeper(), {}, []
    monkeypatch.setattr(muon, "orthogonal", watched)
    classifier.network[1].register_forward_hook(lambda module, args, output: seen.update(network=output.dtype))
    classifier.loss.register_forward_hook(lambda module, args, output: seen.update(loss=output.dtype))
    recipe = Recipe(**BASIC, muon_lr=0.05)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    fit(classifier, split(), recipe, seed=0, accelerator=accelerator, checkpoint=checkpoint, proxy=twin)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert seen == {"network": torch.bfloat16, "loss": torch.float32}
    assert turned == [torch.bfloat16] * (10 + 3)  # every step, and the proxy's every fourth
    assert {p.dtype for p in [*classifier.parameters(), *twin.parameters()]} == {torch.float32}


@pytest.mark.parametrize("augment", [ImageAugment(flip=True, crop_padding=1), SoundAugment(1, 1, 1)])
def test_mixup_mixes_the_losses_of_two_labels(checkpoint, augment):
    seen = []

    def run(mixup):
        classifier = model()
        classifier.loss.register_forward_hook(lambda module, args, output: seen.append(args[1]))
        return trained(checkpoint, classifier, mixup=mixup, augment=augment)

    plain, mixed = run(0.0), run(0.5)
    assert len(seen) == 10 + 2 * 10
    assert any(not torch.equal(a, b) for a, b in zip(seen[10::2], seen[11::2], strict=True))
    assert not same(plain, mixed)


def test_an_epoch_sees_each_sample_once_in_an_order_of_its_own(checkpoint):
    classifier, batches = model(), []
    data = split(samples=40)
    data.inputs[:, 0, 0, 0] = torch.arange(40, dtype=torch.uint8)
    classifier.network[0].register_forward_hook(
        lambda module, args, output: batches.append((args[0][:, 0, 0, 0] * 255).round().int().tolist())
    )
    trained(checkpoint, classifier, data)
    first, second = ([row for batch in epoch for row in batch] for epoch in (batches[:5], batches[5:]))
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second


@pytest.mark.parametrize(
    ("extras", "twin"),
    [
        ({}, lambda: {}),
        ({"ema": 0.9, "mixup": 0.3, "augment": ImageAugment(crop_padding=1)}, lambda: {}),
        ({"lookahead": 0.8}, lambda: {"proxy": model()}),
        ({"muon_lr": 0.1}, lambda: {"classifier": deeper(), "proxy": deeper()}),
    ],
    ids=["plain", "everything", "proxy", "muon"],
)
@pytest.mark.parametrize("step", [3, 5, 8])
def test_a_training_stopped_by_ctrl_c_goes_on_bit_for_bit(tmp_path, extras, twin, step):
    whole = trained(tmp_path / "whole.safetensors", **extras, **twin())
    path, lines = tmp_path / "stopped.safetensors", []

    def on_step(progress):
        if progress.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    def on_epoch(classifier, metrics):
        lines.append(metrics["train_loss"])

    with pytest.raises(Interrupted, match=f"stopped after step {step + (step % 5 > 0)} of 10"):
        trained(path, on_step=on_step, on_epoch=on_epoch, **extras, **twin())
    assert epochs_done(path) == (step + 1) // 5
    resumed = trained(path, resume=True, on_epoch=on_epoch, **extras, **twin())
    assert same(whole, resumed)
    uninterrupted = []
    trained(
        tmp_path / "again",
        on_epoch=lambda _, metrics: uninterrupted.append(metrics["train_loss"]),
        **extras,
        **twin(),
    )
    assert lines == uninterrupted


def test_signals_are_as_before_when_the_training_ends(checkpoint):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    trained(checkpoint)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_finished_training_resumes_to_itself(checkpoint):
    first = trained(checkpoint)
    steps = []
    assert same(trained(checkpoint, resume=True, on_step=steps.append), first)
    assert not steps


def poisoned(numbers, samples=40):
    """Sounds, some of which hold a NaN."""
    data = split(samples)
    inputs = data.inputs.float() / 255
    inputs[list(numbers), 0, 0, 0] = math.nan
    return replace(data, inputs=inputs)


def test_a_step_with_a_nan_in_it_changes_nothing_and_its_samples_are_named(checkpoint, caplog):
    classifier, states = model(), []
    trained(
        checkpoint,
        classifier,
        poisoned([17, 30]),
        batch_size=4,
        on_step=lambda progress: states.append((progress.left_out, copy(classifier))),
    )
    warned = [record.getMessage() for record in caplog.records if record.name == "cssoftmax.training.endings"]
    assert all("left out: infinite or NaN inputs of training samples" in line for line in warned)
    assert {word for line in warned for word in line.split("samples ")[1].split(", ")} == {"17", "30"}
    assert states[-1][0] == len(warned) >= 2
    for (before, old), (after, new) in pairwise(states):
        assert all(torch.equal(old[name], new[name]) for name in old) == (after > before)


def test_after_some_such_steps_the_run_stops_and_the_last_good_checkpoint_stays(checkpoint):
    with pytest.raises(TrainingError, match=r"data: 11 steps had infinite or NaN inputs of .*; repair"):
        trained(checkpoint, model(), poisoned(range(0, 40, 5)), batch_size=4, epochs=3)
    assert epochs_done(checkpoint) >= 1
    checkpoint.unlink()
    with pytest.raises(TrainingError, match=r"data: 11 steps had .*; no checkpoint was written yet"):
        trained(checkpoint, model(), poisoned(range(40)), batch_size=2)


def test_left_out_steps_are_counted_over_a_resumption(checkpoint):
    data, counts = poisoned(range(0, 40, 4)), []

    def stop(progress):
        counts.append(progress.left_out)
        if progress.step == 4:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        trained(checkpoint, model(), data, batch_size=4, on_step=stop)
    with pytest.raises(TrainingError, match="11 steps"):
        trained(checkpoint, model(), data, batch_size=4, resume=True, on_step=stop)
    assert counts[-1] == 10 and all(later - sooner in (0, 1) for sooner, later in pairwise(counts))


def test_weights_gone_wrong_are_blamed_on_the_learning_rate(checkpoint):
    classifier = model()

    def poison(progress):
        if progress.step == 22:
            classifier.network[1].weight.data.fill_(math.inf)

    message = (
        r"lr: 11 steps had infinite or NaN embeddings of training samples \d+, .*at step 32 of .*; lower --lr from 0.1"
    )
    with pytest.raises(TrainingError, match=message):
        trained(checkpoint, classifier, batch_size=2, on_step=poison)


@pytest.mark.parametrize("step", [5, 10])
def test_weights_that_are_not_finite_reach_no_checkpoint(checkpoint, step):
    classifier, epochs = model(), []

    def poison(progress):
        if progress.step == step:
            classifier.network[1].weight.data[0, 0] = math.inf

    with pytest.raises(TrainingError, match="lr: a weight became infinite or NaN, at step") as stop:
        trained(checkpoint, classifier, on_step=poison, on_epoch=lambda _, metrics: epochs.append(metrics))
    assert len(epochs) == step // 5 - 1
    assert checkpoint.exists() == (step == 10)
    assert ("no checkpoint was written yet" in str(stop.value)) == (step == 5)


def test_a_damaged_or_foreign_checkpoint_is_named(checkpoint):
    trained(checkpoint)
    with pytest.raises(TrainingError, match="a training of 10 steps, this one has 15"):
        trained(checkpoint, resume=True, epochs=3)
    other = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.BatchNorm1d(5)), CSSoftmaxLoss(5, 3))
    with pytest.raises(TrainingError, match=r"checkpoint.safetensors: it belongs to another network"):
        trained(checkpoint, other, resume=True)
    whole = checkpoint.read_bytes()
    for content in (b"", whole[:100], whole[:-10], b"{" + whole[1:]):
        checkpoint.write_bytes(content)
        with pytest.raises(TrainingError, match=r"checkpoint.safetensors: damaged .*; delete it") as stop:
            trained(checkpoint, resume=True)
        assert "\n" not in str(stop.value)


def test_embeddings_do_not_depend_on_the_batch_size():
    classifier, accelerator = model().double().float(), Accelerator(cpu=True)
    data = split(samples=23)
    whole = embed(classifier, data, accelerator=accelerator)
    parts = embed(classifier, data, accelerator=accelerator, batch_size=5)
    assert whole[0].shape == (23, 4)
    assert whole[1].shape == (23, 3)
    torch.testing.assert_close(whole, parts)


def test_embeddings_that_are_not_finite_are_refused():
    classifier = model()
    classifier.loss.weight.data[0, 0] = math.nan
    with pytest.raises(TrainingError, match="the network's outputs are infinite or NaN; train anew with a lower --lr"):
        embed(classifier, split(), accelerator=Accelerator(cpu=True))


def test_a_flip_shows_the_other_side_of_each_image_in_the_next_epoch(checkpoint):
    classifier, seen = model(), []
    data = split(samples=40)
    data.inputs[:] = 0
    data.inputs[:, 0, 0, 0], data.inputs[:, 0, 1, :] = 200, torch.arange(40, dtype=torch.uint8)[:, None]
    classifier.network[0].register_forward_hook(lambda module, args, output: seen.append((args[0] * 255).round().int()))
    trained(checkpoint, classifier, data, augment=ImageAugment(flip=True))
    first, second = torch.cat(seen[:5]), torch.cat(seen[5:10])
    mirrored = [{int(image[0, 1, 0]): bool(image[0, 0, 0] == 0) for image in epoch} for epoch in (first, second)]
    assert all(mirrored[0][row] != mirrored[1][row] for row in range(40))
    assert 5 < sum(mirrored[0].values()) < 35


def test_averaged_logits_are_the_mean_over_the_views(checkpoint):
    classifier, data = model(), split()
    accelerator = Accelerator(cpu=True)
    recipe = Recipe(**BASIC, augment=ImageAugment(flip=True))
    plain = embed(classifier, data, accelerator=accelerator)[1]
    mirrored = embed(classifier, replace(data, inputs=data.inputs.flip(3)), accelerator=accelerator)[1]
    averaged = averaged_logits(classifier, data, recipe, accelerator=accelerator)
    torch.testing.assert_close(averaged, (plain + mirrored) / 2)


def test_flops_are_those_of_forward_and_backward_over_all_epochs():
    classifier = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 8, bias=False)), NormFaceLoss(8, 3))
    data = Split(torch.zeros(10, 1, 4, 4, dtype=torch.uint8), torch.arange(10) % 3, None)
    head = 3 * 2 * 8 * 3
    assert flops(classifier, data, Recipe(**BASIC | {"epochs": 7})) == 7 * 10 * (2 * 2 * 16 * 8 + head)
    assert all(p.grad is None for p in classifier.parameters())
    narrow = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 2, bias=False)), NormFaceLoss(2, 3))
    twelve, six = (Recipe(**BASIC | {"epochs": epochs}) for epochs in (12, 6))
    both, proxy = flops(classifier, data, twelve, proxy=narrow), flops(narrow, data, twelve)
    assert both == pytest.approx(flops(classifier, data, six) + proxy * (1 / 3 + 1 / 12))


def test_flops_at_low_resolution_are_those_of_the_smaller_images():
    network = nn.Sequential(nn.Conv2d(1, 8, 1, bias=False), nn.AdaptiveMaxPool2d(1), nn.Flatten())
    classifier = Classifier(network, NormFaceLoss(8, 3))
    data = Split(torch.zeros(10, 1, 16, 16, dtype=torch.uint8), torch.arange(10) % 3, None)
    recipe, head, pixel = Recipe(**BASIC | {"epochs": 4, "low_resolution": 0.25}), 3 * 2 * 8 * 3, 2 * 2 * 8
    assert flops(classifier, data, recipe) == 30 * (16**2 * pixel + head) + 10 * (10**2 * pixel + head)


def test_training_begins_at_low_resolution(checkpoint):
    network = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16, 4))
    classifier, sizes = Classifier(network, CSSoftmaxLoss(4, 3)), []
    network.register_forward_hook(lambda module, args, output: sizes.append(tuple(args[0].shape[2:])))
    images = torch.randint(0, 256, (40, 1, 16, 12), dtype=torch.uint8)
    trained(checkpoint, classifier, Split(images, torch.arange(40) % 3, None), epochs=2, low_resolution=0.6)
    assert sizes == [(10, 8)] * 6 + [(16, 12)] * 4


@pytest.mark.parametrize(("height", "width"), [(32, 32), (28, 28), (16, 12), (8, 5)])
def test_smaller_images_are_those_of_pillow(height, width):
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(height))
    size = round(width * 5 / 8), round(height * 5 / 8)
    expected = [Image.fromarray(one.numpy()).resize(size, Image.Resampling.BILINEAR) for one in images.flatten(0, 1)]
    for memory_format in (torch.contiguous_format, torch.channels_last):
        small = smaller(images.contiguous(memory_format=memory_format))
        torch.testing.assert_close(small.flatten(0, 1), torch.from_numpy(np.stack(expected)))


def test_sounds_have_no_low_resolution():
    with pytest.raises(RecipeError, match="^low_resolution: 0.5, but only images can be made smaller; give 0$"):
        Recipe(**BASIC, low_resolution=0.5, augment=SoundAugment())


def test_a_proxy_leaves_the_harder_half_of_each_batch_to_the_network(checkpoint):
    def watched(classifier):
        batches = []
        classifier.network[1].register_forward_hook(lambda module, args, output: batches.append(args[0].clone()))
        return batches

    classifier, proxy, losses = model(), model(), []
    chosen, offered = watched(classifier), watched(proxy)
    proxy.loss.register_forward_hook(lambda module, args, output: losses.append(output.detach().clone()))
    trained(checkpoint, classifier, proxy=proxy)
    assert len(chosen) == len(offered) == len(losses) == 10
    for batch, whole, loss in zip(chosen, offered, losses, strict=True):
        assert (len(batch), len(whole)) == (4, 8)
        torch.testing.assert_close(batch, whole[loss.topk(4).indices.sort().values])
    assert not same(proxy, model())  # it learned, too


def test_a_nan_reaches_neither_the_network_nor_its_proxy(checkpoint, caplog):
    data = split()
    data = replace(data, inputs=data.inputs.float() / 255)
    data.inputs[7] = math.nan
    classifier, proxy = model(), model()
    trained(checkpoint, classifier, data, proxy=proxy)
    assert all(p.isfinite().all() for module in (classifier, proxy) for p in module.parameters())
    assert caplog.records
    assert all("training samples 7" in record.message for record in caplog.records)


def test_a_learning_rate_far_too_high_is_diagnosed_in_words(checkpoint, caplog):
    trained(checkpoint, model(), lr=0.1)
    assert "too high" not in caplog.text
    torch.manual_seed(0)
    linear = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 4)), SoftmaxLoss(4, 30))
    data = replace(split(samples=300), target=torch.arange(300) % 30)
    trained(checkpoint, linear, data, lr=2.0, batch_size=20, epochs=1)
    assert "--lr 2 is far too high, try a tenth of it" in caplog.text
