"""Splitting a classifier, and the optimizer's groups."""

import pytest
import torch
from torch import nn

from cssoftmax import CSSoftmaxLoss, param_groups, split_head


class Classifier(nn.Module):
    """A head deep inside, used by name, with more layers before it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.classifier = nn.Sequential(nn.Dropout(0.1), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 5))

    def forward(self, x):
        return self.classifier(self.norm(self.conv(x)).mean((2, 3)))


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.age, self.name = nn.Linear(6, 4), nn.Linear(4, 2), nn.Linear(4, 3)


@pytest.mark.parametrize("name", ["classifier.3", None])
def test_the_backbone_returns_what_the_layer_took_and_the_model_stays_as_it_is(name):
    torch.manual_seed(0)
    model = Classifier().eval()
    x = torch.randn(2, 3, 7, 7)
    before = model(x)
    backbone, linear = split_head(model, name)
    torch.testing.assert_close(linear(backbone(x)), before)
    torch.testing.assert_close(model(x), before)
    assert linear is model.classifier[3]
    assert {id(p) for p in backbone.parameters()} | {id(p) for p in linear.parameters()} == {
        id(p) for p in model.parameters()
    }


def test_training_the_parts_trains_the_model():
    model = Classifier()
    backbone, linear = split_head(model)
    loss = CSSoftmaxLoss.from_linear(linear)
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(param_groups(backbone, loss, lr=0.1), momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        loss(backbone(torch.randn(8, 3, 7, 7)), torch.randint(5, (8,))).backward()
        optimizer.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert {"conv.weight", "norm.weight", "classifier.1.weight", "classifier.3.weight"} <= changed


def test_train_and_eval_of_the_backbone_reach_its_layers():
    backbone, _ = split_head(Classifier())
    backbone.eval()
    assert not backbone.classifier[0].training


def test_a_model_that_is_one_layer_becomes_the_identity():
    backbone, linear = split_head(nn.Sequential(nn.Linear(3, 2)))
    x = torch.randn(4, 3)
    assert torch.equal(backbone(x), x)
    assert linear.out_features == 2


@pytest.mark.parametrize(
    ("model", "name", "error", "message"),
    [
        (Classifier(), "fc", ValueError, r"no layer 'fc'; its linear layers: classifier.1, classifier.3"),
        (Classifier(), "conv", TypeError, "'conv' is a Conv2d"),
        (TwoHeads(), None, ValueError, "'age' and 'name' may both be the classifier"),
        (nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), None, ValueError, "last layer .* is BatchNorm1d"),
        (nn.ReLU(), None, ValueError, "none at all.*it has no nn.Linear inside"),
    ],
)
def test_no_single_classifier_is_an_error_that_lists_the_layers(model, name, error, message):
    with pytest.raises(error, match=message):
        split_head(model, name)


def test_every_parameter_is_in_one_group_and_only_weights_of_the_network_decay():
    model = Classifier()
    backbone, linear = split_head(model)
    loss = CSSoftmaxLoss.from_linear(linear)
    groups = param_groups(backbone, loss, lr=0.1, weight_decay=5e-4, class_lr_scale=10.0)
    members = [id(p) for group in groups for p in group["params"]]
    assert len(members) == len(set(members))
    assert set(members) == {id(p) for p in [*backbone.parameters(), *loss.parameters()]}
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {id(model.conv.weight), id(model.classifier[1].weight)}
    (classes,) = [group for group in groups if id(loss.weight) in {id(p) for p in group["params"]}]
    assert classes["lr"] == pytest.approx(1.0)
    biases = {
        id(p): group["lr"] for group in param_groups(backbone, loss, lr=0.1, bias_lr_scale=8.0) for p in group["params"]
    }
    assert [biases[id(p)] for p in (model.conv.weight, model.conv.bias)] == pytest.approx([0.1, 0.8])


def test_the_whole_model_given_as_network_leaves_the_shared_weights_to_the_loss():
    model = Classifier()
    loss = CSSoftmaxLoss.from_linear(split_head(model)[1])
    groups = param_groups(model, loss, lr=0.1, weight_decay=1e-3)
    members = [id(p) for group in groups for p in group["params"]]
    assert members.count(id(loss.weight)) == 1
