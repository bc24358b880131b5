"""torch.compile keeps the whole model in one graph, the kernels as opaque ops inside, and computes the same."""

import contextlib
import copy

import pytest
import torch

from tacaf.losses.total import LossConfig, TacafLoss
from tests.model.cases import pairs_of, tiny_batch, tiny_model
from tests.tolerances import assert_same_gradients


@pytest.mark.slow
@pytest.mark.parametrize(("bf16", "tolerance"), [(False, 1e-4), (True, 5e-2)])
def test_one_graph(bf16, tolerance):
    model, data = tiny_model().train(), tiny_batch()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    pairs = [pairs_of(data, layer) for layer in (3, 4)]
    results = []
    for network in (model, compiled):
        with torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext():
            output = network(data.images_BCHW, data.label_B, data.visible, *pairs)
        loss, _ = TacafLoss(LossConfig())(output, data.label_B)
        loss.backward()
        named = ((name.removeprefix("_orig_mod."), p) for name, p in network.named_parameters())
        gradients = {name: p.grad for name, p in named if p.grad is not None}
        results.append((output.scores.own_B, gradients))
    (score_B, gradients), (compiled_score_B, compiled_gradients) = results
    assert (compiled_score_B - score_B).norm() <= tolerance * score_B.norm()
    assert_same_gradients(gradients, compiled_gradients, share=tolerance)
