"""The launches of a step beside those of the backbone and the alignment: how they are counted, and their bound."""

from collections import Counter

import pytest
import torch

from perf.parts.step_launches import Launched, launches
from perf.parts.step_model import BASELINE_LAUNCHES, WHOLE_LAUNCHES
from perf.parts.train_step import Variant


def test_what_computes_is_counted_and_views_and_allocations_are_not():
    with Launched() as launched:
        x = torch.empty(4, 3)
        x.zero_()
        (x.T @ x.view(4, 3)).relu()[0].unsqueeze(0)
    assert launched.operators == Counter({"aten::zero_": 1, "aten::mm": 1, "aten::relu": 1})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("whole", "modelled", "most"),
    [(True, WHOLE_LAUNCHES, 250), (False, BASELINE_LAUNCHES, 65)],
    ids=("whole", "baseline"),
)
def test_a_step_stays_below_its_bound_and_the_model_knows_it(whole, modelled, most):
    """Before its products, scores and gradients were stacked, the whole step had 454 of them."""
    found = launches(Variant("x", cmaam=whole, ipcam=whole, channels_last=True))
    assert sum(found.values()) <= most, found
    assert sum(found.values()) == modelled, "change the number in perf/parts/step_model.py"
    assert not any("convolution" in name for name in found), "the backbone's"
    assert ("kernels::ring_aggregate" in found) is whole
