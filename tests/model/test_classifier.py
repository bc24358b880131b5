"""A classifier in pieces is the classifier in one: scores, gradients, initial weights; logits are never all alive."""

import pytest
import torch
import torch.nn.functional as F

from tacaf.losses.identity import identity_loss
from tacaf.model.classifier import Classifier
from tacaf.model.head import new_classifier
from tacaf.model.ipcam import IpcamConfig, NodeHead

ROWS, WIDTH, IDENTITIES = 6, 5, 11
LABEL = torch.tensor([0, 10, 3, 4, 5, 3])  # the first and the last, and both sides of a cut
CHUNKS = (1, 2, 4, 10, 11, 1000)


def case(stack=(), scale=3.0, dtype=torch.float64):
    torch.manual_seed(0)
    rows = torch.randn(*stack, ROWS, WIDTH, dtype=dtype, requires_grad=True)
    return rows, scale * torch.randn(*stack, IDENTITIES, WIDTH, dtype=dtype)


def whole_weight(classifier, name="weight"):
    parts = [getattr(piece.weight, "grad" if name == "grad" else "data") for piece in classifier]
    return torch.cat(parts, dim=-2)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("stack", [(), (3,)], ids=["one", "stacked"])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_loss_and_gradients_are_those_of_cross_entropy_over_all_logits(chunk, stack, smoothing):
    rows, weight = case(stack)
    classifier = Classifier(weight, chunk)
    assert [len(piece.weight.flatten(0, -2)) for piece in classifier] == [
        len(part.flatten(0, -2)) for part in weight.split(chunk, dim=-2)
    ]
    loss = identity_loss(classifier(rows, LABEL), smoothing)
    loss.backward()
    same_rows, same_weight = rows.detach().requires_grad_(), weight.clone().requires_grad_()
    logits = (same_rows @ same_weight.mT).flatten(0, -2)
    labels = LABEL.repeat(len(logits) // ROWS)
    expected = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(rows.grad, same_rows.grad)
    torch.testing.assert_close(whole_weight(classifier, "grad"), same_weight.grad)


def test_gradcheck_in_pieces():
    rows, weight = case()
    classifier = Classifier(weight, 4)
    assert torch.autograd.gradcheck(lambda x: tuple(classifier(x, LABEL)), rows)


@pytest.mark.parametrize("bf16", [False, True])
def test_large_logits_do_not_overflow(bf16):
    """Logits of thousands: the sums go through the largest of all pieces."""
    rows, weight = case(scale=1e4, dtype=torch.float32)
    found = []
    for chunk in (3, IDENTITIES):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            found.append(Classifier(weight, chunk)(rows, LABEL))
    assert found[0].own_B.dtype == torch.float32
    assert found[0].own_B.min() < -1000
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-3)


def test_the_logits_of_the_pieces_are_not_kept_for_backward():
    rows, weight = case((), dtype=torch.float32)
    kept = []

    def bytes_kept(chunk):
        kept.clear()
        classifier = Classifier(weight.repeat(40, 1), chunk)
        own = {piece.weight.untyped_storage().data_ptr() for piece in classifier}
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
            classifier(rows, LABEL)
        sizes = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in kept}
        return sum(size for pointer, size in sizes.items() if pointer not in own)

    logits = ROWS * 40 * IDENTITIES * 4
    assert bytes_kept(40 * IDENTITIES) >= logits
    assert bytes_kept(110) < logits / 4


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_the_initial_weights_do_not_depend_on_the_pieces(chunk):
    def drawn(chunk, count):
        torch.manual_seed(4)
        head = new_classifier(3, 20, chunk)
        nodes = NodeHead(IpcamConfig(node_width=3, classifiers=count), 20, "local", chunk)
        return [whole_weight(head), whole_weight(nodes.classifier), torch.rand(1)]

    for count in ("each", "shared", "global"):
        assert all(torch.equal(a, b) for a, b in zip(drawn(chunk, count), drawn(20, count), strict=True))


def test_the_pieces_of_one_classifier_share_its_memory():
    classifier = new_classifier(8, 100, 30)
    assert len({piece.weight.untyped_storage().data_ptr() for piece in classifier}) == 1
