"""IPCAM against slow scalar loops: the graph, the ring, the ten nodes, the pair stage and the node heads."""

import math

import pytest
import torch
from pydantic import ValidationError

from tacaf.interfaces import Scores
from tacaf.model.ipcam import Ipcam, IpcamConfig, NodeHead, PairStage, graph_mask
from tests.model.cases import dot, length, linear, mix, randomise_norms, relu_bn, scores_of, softmax

WIDTH, NODE, ATTENTION = 4, 3, 2
PAIR_LABEL = torch.tensor([3, 0, 3])


def config(**changes) -> IpcamConfig:
    return IpcamConfig(**({"node_width": NODE, "attention_width": ATTENTION, "pair_width": 2} | changes))


def sharp(module: torch.nn.Module, factor: float = 4.0) -> torch.nn.Module:
    """Larger weights, so that attention is far from uniform, and norms that are not the identity."""
    for part in module.modules():
        if isinstance(part, torch.nn.Linear):
            part.weight.data.mul_(factor)
    randomise_norms(module)
    return module


def test_the_graph_of_ten_nodes_is_the_methods():
    # g = 0, c1..c3 = 1..3, f1..f6 = 4..9
    edges = {(node, node) for node in range(10)}
    edges |= {(0, node) for node in range(1, 10)}  # star
    edges |= {(1, 2), (2, 3), (3, 1)}  # coarse ring
    edges |= {(4, 5), (5, 6), (6, 7), (7, 8), (8, 9), (9, 4)}  # fine ring
    edges |= {(1, 4), (1, 5), (2, 6), (2, 7), (3, 8), (3, 9)}  # c_k contains f_2k-1 and f_2k
    edges |= {(b, a) for a, b in edges}
    found = graph_mask((1, 3, 6))
    assert {tuple(edge) for edge in found.nonzero().tolist()} == edges
    assert int(found.sum()) == 58


def test_containment_follows_the_levels():
    mask = graph_mask((1, 2, 6))
    assert mask[1, 3:9].tolist() == [True, True, True, False, False, False]
    assert mask[2, 3:9].tolist() == [False, False, False, True, True, True]
    assert int(graph_mask((1, 6)).sum()) == 7 + 2 * 6 + 2 * 6


def _attend(net, queries, values, seen):
    """For node i: softmax over j in seen(i) of <Theta q_i, Phi q_j> / sqrt(A), mixing the values."""
    mixed = []
    for i, query in enumerate(queries):
        neighbours = seen(i)
        scores = [dot(linear(net.theta.weight, query), linear(net.phi.weight, queries[j])) for j in neighbours]
        weights = softmax([score / math.sqrt(ATTENTION) for score in scores])
        mixed.append(mix(weights, [values[j] for j in neighbours]))
    return mixed


def _cyclic(net, fine):
    count, u = len(fine), fine
    for _ in range(net.config.rounds):  # Theta u and Phi u afresh in every round
        u = _attend(net, u, u, lambda i: [i, (i - 1) % count, (i + 1) % count])
    if not net.config.self_connection:
        return u
    return [[a + b for a, b in zip(x, y, strict=True)] for x, y in zip(u, fine, strict=True)]


def _scalar_ipcam(net, pooled_BNC):
    """Method §5.1-5.3 with scalars: pooled stripes to nodes n'."""
    images = pooled_BNC.tolist()
    nodes, start = [[] for _ in images], 0
    for index, level in enumerate(net.config.levels):
        stripes = [stripe for image in images for stripe in image[start : start + level]]
        embedded = relu_bn(net.embed_norm[index], [linear(net.embed[index].weight, stripe) for stripe in stripes])
        for image in range(len(images)):
            nodes[image] += embedded[image * level : (image + 1) * level]
        start += level
    fine = net.config.levels[-1]
    if net.config.ring:
        nodes = [image[:-fine] + _cyclic(net, image[-fine:]) for image in nodes]
    mask = graph_mask(net.config.levels).tolist()
    attended = []
    for image in nodes:
        attended += _attend(net, image, image, lambda i: [j for j in range(len(mask)) if mask[i][j]])
    update = relu_bn(net.graph_norm, [linear(net.graph_weight.weight, row) for row in attended])
    flat = [row for image in nodes for row in image]
    sums = [[a + b for a, b in zip(x, y, strict=True)] for x, y in zip(flat, update, strict=True)]
    return torch.tensor(sums).unflatten(0, pooled_BNC.shape[:2])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rounds": 1},
        {"rounds": 3},
        {"self_connection": False},
        {"ring": False},
        {"levels": (1, 3)},
        {"levels": (1, 2, 4)},
    ],
    ids=str,
)
def test_nodes_against_scalar_loops(changes, training):
    torch.manual_seed(0)
    net = sharp(Ipcam(config(**changes), WIDTH, "local")).train(training)
    pooled = torch.rand(3, net.config.nodes, WIDTH)
    expected = _scalar_ipcam(net, pooled)
    torch.testing.assert_close(net(pooled.split(net.config.levels, dim=1)), expected, rtol=1e-4, atol=1e-5)


def test_the_ring_and_each_of_its_switches_change_the_nodes():
    found = []
    for changes in ({}, {"ring": False}, {"self_connection": False}, {"rounds": 1}):
        torch.manual_seed(0)
        net = sharp(Ipcam(config(**changes), WIDTH, "local")).eval()
        pooled = torch.rand(2, 10, WIDTH, generator=torch.Generator().manual_seed(1))
        found.append(net(pooled.split(net.config.levels, dim=1)))
    for other in found[1:]:
        assert not torch.allclose(found[0], other, atol=1e-3)


def _scalar_pair_stage(stage, fine, visible, infrared):
    """Method §5.4: both sides through one shared norm after W_x and one after U, then the mean over parts."""

    def across(own, other):
        """X F_other for the parts of `own`, X the softmax of cosine / temperature."""
        rebuilt = []
        for part in own:
            cosine = [dot(part, x) / (max(length(part), 1e-12) * max(length(x), 1e-12)) for x in other]
            rebuilt.append(mix(softmax([c / 0.1 for c in cosine]), other))
        return rebuilt

    rows = [row for v, i in zip(visible, infrared, strict=True) for row in across(fine[v], fine[i])]
    rows += [row for v, i in zip(visible, infrared, strict=True) for row in across(fine[i], fine[v])]
    crossed = relu_bn(stage.cross_norm, [linear(stage.cross_weight.weight, row) for row in rows])
    narrow = relu_bn(stage.compress_norm, [linear(stage.compress.weight, row) for row in crossed])
    parts = len(fine[0])
    means = [mix([1 / parts] * parts, narrow[at : at + parts]) for at in range(0, len(narrow), parts)]
    logits = [linear(stage.classifier[0].weight, mean) for mean in means]
    pairs = len(visible)
    sides = [scores_of(side, PAIR_LABEL.tolist()) for side in (logits[:pairs], logits[pairs:])]
    return Scores(*(torch.stack(part) for part in zip(*sides, strict=True)))


def pair_case():
    torch.manual_seed(0)
    stage = sharp(PairStage(config(), 4, "local", 9).double())
    stage.classifier[0].weight.data.mul_(100)
    fine = torch.randn(5, 3, NODE, dtype=torch.float64)
    return stage, fine, torch.tensor([0, 1, 2]), torch.tensor([4, 3, 4])


def test_pair_stage_against_scalar_loops():
    stage, fine, visible, infrared = pair_case()
    expected = _scalar_pair_stage(stage, fine.tolist(), visible.tolist(), infrared.tolist())
    torch.testing.assert_close(stage(fine, visible, infrared, PAIR_LABEL), expected, rtol=1e-9, atol=1e-9)


def test_pair_stage_lets_the_gradient_through_the_matching():
    stage, fine, visible, infrared = pair_case()
    assert torch.autograd.gradcheck(lambda x: stage(x, visible, infrared, PAIR_LABEL).own_B, fine.requires_grad_())


@pytest.mark.parametrize(("classifiers", "count"), [("each", 10), ("shared", 10), ("global", 1)])
def test_every_classified_node_has_its_own_neck_and_its_own_or_the_shared_classifier(classifiers, count):
    torch.manual_seed(0)
    head = NodeHead(config(classifiers=classifiers), 5, "local", 9).double()
    randomise_norms(head)
    weight = head.classifier[0].weight
    weight.data.mul_(1000)
    nodes, label = torch.randn(4, 10, NODE, dtype=torch.float64), torch.tensor([4, 0, 2, 2])
    found = head(nodes, label)
    assert weight.shape == ((10, 5, NODE) if classifiers == "each" else (5, NODE))
    assert {x.shape for x in found} == {(count, 4)}
    necked = relu_bn(head.neck, nodes[:, :count].flatten(1).tolist(), relu=False)
    for node, scores in enumerate(zip(*found, strict=True)):
        own = slice(node * NODE, (node + 1) * NODE)
        logits = [linear(weight[node] if classifiers == "each" else weight, row[own]) for row in necked]
        torch.testing.assert_close(scores, tuple(scores_of(logits, label.tolist())))


def test_the_node_necks_keep_their_bias():
    assert not NodeHead(config(), 5, "local", 9).neck.bias.requires_grad


@pytest.mark.parametrize(
    ("levels", "says"),
    [
        ((1, 3, 7), "levels: expected 1 first"),
        ((2, 6), "levels: expected 1 first"),
        ((1, 6, 3), "levels: expected 1 first"),
        ((1,), "levels: expected 1 first"),
        ((1, 2), "ring: expected at least 3 fine parts, got 2"),
    ],
)
def test_impossible_levels_are_refused(levels, says):
    with pytest.raises(ValidationError, match=says):
        config(levels=levels)


def test_two_fine_parts_are_fine_without_a_ring():
    assert config(levels=(1, 2), ring=False).nodes == 3
