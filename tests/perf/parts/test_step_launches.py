"""The launches of a step beside those of the backbone and the alignment: how they are counted, and their bound."""

from collections import Counter

import torch

from perf.parts.step_launches import Launched


def test_what_computes_is_counted_and_views_and_allocations_are_not():
    with Launched() as launched:
        x = torch.empty(4, 3)
        x.zero_()
        (x.T @ x.view(4, 3)).relu()[0].unsqueeze(0)
    assert launched.operators == Counter({"aten::zero_": 1, "aten::mm": 1, "aten::relu": 1})
