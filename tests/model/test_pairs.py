"""The draw of pairs: who may meet whom, that only identities and global positions count, and what is refused."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tacaf.model.pairs import draw_pairs
from tacaf.vocabulary import Branch, InputError
from tests.model.cases import pairs_of, tiny_batch

DIRECTIONS = ("both", "visible_to_infrared")


def taken(batch, rows):
    """The batch restricted to `rows`, in that order: another order of the batch, or one rank's share."""
    columns = ("label_B", "branch_B", "group_B", "position_B")
    return batch._replace(**{name: getattr(batch, name)[rows] for name in columns})


def in_positions(batch, pairs):
    """The pairs as (anchor, positive, negative) of global positions."""
    return {tuple(batch.position_B[row].tolist()) for row in torch.stack(tuple(pairs), 1)}


@settings(max_examples=40)
@given(st.data())
def test_pairs_are_right_and_the_same_whatever_the_order_of_the_batch(data):
    groups, images = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 3))
    pair_group, augmented = data.draw(st.integers(2, 4)), data.draw(st.booleans())
    direction, seed = data.draw(st.sampled_from(DIRECTIONS)), data.draw(st.integers(0, 2**20))
    batch = tiny_batch(groups * pair_group, images, augmented, pair_group)
    shuffled = taken(batch, torch.tensor(data.draw(st.permutations(range(len(batch.label_B))))))
    pairs = pairs_of(shuffled, 4, seed, direction)
    label, branch, group = shuffled.label_B, shuffled.branch_B, shuffled.group_B
    infrared = branch == Branch.INFRARED
    anchors = torch.ones_like(infrared) if direction == "both" else ~infrared
    assert torch.equal(pairs.anchor_N, anchors.nonzero()[:, 0])  # every anchor once, ascending by row
    anchor, positive, negative = pairs
    assert torch.equal(label[positive], label[anchor])
    assert (label[negative] != label[anchor]).all()
    assert torch.equal(group[negative], group[anchor])
    assert (infrared[positive] != infrared[anchor]).all()
    assert torch.equal(branch[negative], branch[positive])  # the same coin for both
    assert in_positions(shuffled, pairs) == in_positions(batch, pairs_of(batch, 4, seed, direction))


@pytest.mark.parametrize("augmented", [True, False])
def test_an_identitys_images_are_each_the_positive_of_one_anchor(augmented):
    """By a permutation of the slots; for infrared anchors slot k is V0's or V1's k-th image, the same picture."""
    batch = tiny_batch(identities=4, images=4, augmented=augmented)
    slot = batch.position_B % 4
    for seed in range(5):
        pairs = pairs_of(batch, 3, seed)
        for label in range(4):
            for branch in set(batch.branch_B.tolist()):
                chosen = (batch.label_B[pairs.anchor_N] == label) & (batch.branch_B[pairs.anchor_N] == branch)
                assert sorted(slot[pairs.positive_N[chosen]].tolist()) == [0, 1, 2, 3]


def test_every_branch_and_identity_has_a_permutation_of_its_own():
    batch, seen = tiny_batch(identities=2, images=4), Counter()
    for step in range(20):
        pairs = pairs_of(batch._replace(step=step))
        orders = (pairs.positive_N % 4).view(3, 2, 4).tolist()  # branch, identity, slot
        seen["branches"] += orders[0][0] == orders[1][0]
        seen["identities"] += orders[0][0] == orders[0][1]
    assert all(count < 5 for count in seen.values())  # by chance 1 in 24


def test_every_choice_is_fair():
    """Over 300 steps: positives' slots, the coin, negatives' identities and slots. Deterministic draws, wide bounds."""
    batch = tiny_batch(identities=4, images=2, pair_group=4)
    visible, infrared = 0, len(batch.label_B) - 1  # an anchor of label 0 and one of label 3
    seen = {"positive": Counter(), "coin": Counter(), "negative": Counter(), "both": Counter()}
    for step in range(300):
        pairs = pairs_of(batch._replace(step=step))
        seen["positive"][int(pairs.positive_N[visible])] += 1
        seen["negative"][int(pairs.negative_N[visible])] += 1
        seen["coin"][int(batch.branch_B[pairs.positive_N[infrared]])] += 1
        seen["both"][int(pairs.positive_N[visible]) % 2, int(pairs.negative_N[visible]) % 2] += 1
    for name, outcomes in {"positive": 2, "coin": 2, "negative": 6, "both": 4}.items():
        assert len(seen[name]) == outcomes, name
        assert all(0.7 < count * outcomes / 300 < 1.3 for count in seen[name].values()), (name, seen[name])


def test_the_draw_is_a_function_of_seed_epoch_step_and_layer():
    batch = tiny_batch(identities=4, images=4)
    columns = (batch.label_B, batch.branch_B, batch.group_B, batch.position_B)
    draws = {
        key: in_positions(batch, draw_pairs(*columns, seed=key[0], epoch=key[1], step=key[2], layer=key[3]))
        for key in [(0, 0, 0, 3), (1, 0, 0, 3), (0, 1, 0, 3), (0, 0, 1, 3), (0, 0, 0, 4), (0, 1, 1, 3)]
    }
    assert len({frozenset(draw) for draw in draws.values()}) == len(draws)
    torch.manual_seed(5)  # no hidden state
    again = pairs_of(batch, 3)
    assert in_positions(batch, again) == draws[0, 0, 0, 3]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("layer", [3, 4])
def test_the_ranks_draws_together_are_the_whole_batchs(layer, direction):
    batch = tiny_batch(identities=8, images=2)
    whole = in_positions(batch, pairs_of(batch, layer, 7, direction))
    for ranks in (2, 4):
        shares = [taken(batch, batch.group_B * ranks // 4 == rank) for rank in range(ranks)]
        parts = [in_positions(share, pairs_of(share, layer, 7, direction)) for share in shares]
        assert set().union(*parts) == whole
        assert sum(map(len, parts)) == len(whole)


def test_a_larger_group_reaches_further():
    batch = tiny_batch(identities=4, images=2, pair_group=4)
    pairs = [pairs_of(batch._replace(step=step)) for step in range(20)]
    met = {(int(batch.label_B[a]), int(batch.label_B[n])) for p in pairs for a, _, n in zip(*p, strict=True)}
    assert met == {(a, n) for a in range(4) for n in range(4) if a != n}


def test_an_identity_alone_in_its_group_is_refused():
    batch = tiny_batch(identities=3, pair_group=2)
    with pytest.raises(InputError, match=r"label 2 .*group 1"):
        pairs_of(batch)


def test_an_identity_without_a_modality_is_refused():
    batch = tiny_batch()
    lacking = taken(batch, ~((batch.label_B == 1) & (batch.branch_B == Branch.INFRARED)))
    with pytest.raises(InputError, match="infrared for label 1"):
        pairs_of(lacking)


def test_unequal_numbers_of_images_are_refused():
    batch = tiny_batch(images=2)
    fewer = taken(batch, batch.position_B != batch.position_B[-1])
    with pytest.raises(InputError, match="2 and 1 for label 3"):
        pairs_of(fewer)
