"""The identity head: BNNeck without a learned bias, then a classifier without one."""

import torch

from tacaf.model.head import CLASSIFIER_STD, Head, new_classifier
from tests.model.cases import linear, randomise_norms, relu_bn, scores_of


def test_head_against_scalar_loops():
    torch.manual_seed(0)
    head, label = Head(3, 4, "local", 9).double(), torch.tensor([0, 3, 1, 2, 3])
    randomise_norms(head)
    weight = head.classifier[0].weight
    weight.data.mul_(1000)
    for training in (True, False):
        head.train(training)
        pooled = torch.rand(5, 3, dtype=torch.float64)
        expected = [linear(weight, row) for row in relu_bn(head.neck, pooled.tolist(), relu=False)]
        torch.testing.assert_close(head(pooled, label), scores_of(expected, label.tolist()))


def test_only_the_necks_scale_and_the_classifier_learn():
    head = Head(3, 4, "local", 9)
    assert {name for name, p in head.named_parameters() if p.requires_grad} == {"neck.weight", "classifier.0.weight"}
    assert not head.neck.bias.any()


def test_classifiers_start_small():
    torch.manual_seed(0)
    weight = new_classifier(200, 100, 100)[0].weight
    assert weight.shape == (100, 200)
    assert abs(weight.std().item() / CLASSIFIER_STD - 1) < 0.05
    assert CLASSIFIER_STD == 0.001
