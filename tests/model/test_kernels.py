"""`model.kernels`: the definitions and the fast kernels train and embed alike, and `reference` runs no kernel."""

import pytest
import torch

from tacaf.losses.total import LossConfig, TacafLoss
from tacaf.vocabulary import Modality
from tests.kernels.cases import CustomOps
from tests.model.cases import tiny_batch, tiny_model, train_forward
from tests.tolerances import assert_same_gradients

OPS = {"kernels::align", "kernels::gem_pyramid", "kernels::ring_aggregate"}


def train_step(kernels: str) -> tuple[torch.Tensor, dict[str, torch.Tensor], set[str]]:
    """Loss, gradients by name, and the kernels' operators that ran."""
    model, batch = tiny_model(kernels=kernels), tiny_batch()
    with CustomOps() as ran:
        total, _ = TacafLoss(LossConfig())(train_forward(model, batch), batch.label_B)
        total.backward()
    return total.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, ran.names


def test_a_training_step_is_the_same_by_definitions_and_with_kernels():
    (total, gradients, fast), (expected, by_definition, none) = train_step("auto"), train_step("reference")
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=0)
    assert_same_gradients(by_definition, gradients, share=1e-3)
    assert fast == OPS | {f"{name}_backward" for name in OPS}
    assert none == set()


@pytest.mark.parametrize(("kernels", "expected"), [("auto", OPS - {"kernels::align"}), ("reference", set())])
def test_an_embedding_runs_the_kernels_that_are_configured(kernels, expected):
    model = tiny_model(kernels=kernels).eval()
    with torch.no_grad(), CustomOps() as ran:
        found_BD = model.embed(tiny_batch().images_BCHW[:2], Modality.VISIBLE)
    assert ran.names == expected
    with torch.no_grad():
        usual_BD = tiny_model().eval().embed(tiny_batch().images_BCHW[:2], Modality.VISIBLE)
    torch.testing.assert_close(found_BD, usual_BD, rtol=1e-5, atol=1e-6)
