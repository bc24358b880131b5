"""The identity head: BNNeck without a learned bias, then a classifier without one."""

import torch

from tacaf.model.head import CLASSIFIER_STD, Head, new_classifier
from tests.model.cases import linear, randomise_norms, relu_bn


def test_head_against_scalar_loops():
    torch.manual_seed(0)
    head = Head(3, 4, "local").double()
    randomise_norms(head)
    head.classifier.weight.data.mul_(1000)
    for training in (True, False):
        head.train(training)
        pooled = torch.rand(5, 3, dtype=torch.float64)
        expected = [linear(head.classifier.weight, row) for row in relu_bn(head.neck, pooled.tolist(), relu=False)]
        torch.testing.assert_close(head(pooled), torch.tensor(expected, dtype=torch.float64))


def test_only_the_necks_scale_and_the_classifier_learn():
    head = Head(3, 4, "local")
    assert {name for name, p in head.named_parameters() if p.requires_grad} == {"neck.weight", "classifier.weight"}
    assert not head.neck.bias.any()


def test_classifiers_start_small():
    torch.manual_seed(0)
    weight = new_classifier(200, 100).weight
    assert weight.shape == (100, 200)
    assert abs(weight.std().item() / CLASSIFIER_STD - 1) < 0.05
    assert CLASSIFIER_STD == 0.001
