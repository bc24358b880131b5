"""Drawing the cross-modal pairs: which image is reconstructed from which.

Pairs depend on identities, not on the order of the batch. Every draw is keyed by the image's position in the *global*
batch, so the pairs are the same for every order and world size (method §1, §4; ours). B rows of a rank, N anchors.
"""

from typing import Literal

import numpy as np
import torch

from tacaf.draws import Stream, uniform
from tacaf.interfaces import Pairs
from tacaf.vocabulary import Branch, InputError

Direction = Literal["both", "visible_to_infrared"]

# The meaning of the draw counter in the pair streams: 0-2 order the slots for anchors of that branch.
_COIN, _OTHER_IDENTITY, _OTHER_SLOT, _DRAWS = 3, 4, 5, 6


class _Slots:
    """The rows of each identity's images in each branch; slot k is the k-th by global position."""

    def __init__(self, label_B: np.ndarray, branch_B: np.ndarray, group_B: np.ndarray, position_B: np.ndarray) -> None:
        self._rows: dict[tuple[int, int], list[int]] = {}
        self.group_of: dict[int, int] = {}
        for row in np.argsort(position_B, kind="stable").tolist():
            label = int(label_B[row])
            self._rows.setdefault((label, int(branch_B[row])), []).append(row)
            self.group_of[label] = int(group_B[row])
        self.augmented = any(branch == Branch.AUGMENTED for _, branch in self._rows)

    def rows(self, label: int, branch: int) -> list[int]:
        rows = self._rows.get((label, branch))
        if not rows:
            name = Branch(branch).name.lower()
            raise InputError(
                f"expected every identity of a batch to have images in every branch, got none in branch {name} for "
                f"label {label}; leave identities that lack a modality out of training"
            )
        return rows

    def others(self, label: int) -> list[int]:
        """The other identities of the group, ascending, from which a negative may be drawn."""
        group = self.group_of[label]
        others = [other for other in sorted(self.group_of) if self.group_of[other] == group and other != label]
        if not others:
            raise InputError(
                f"expected at least two identities in a pair group, got label {label} alone in group {group}; "
                "set pair_group to 2 or more and at least two identities per batch"
            )
        return others

    def target_branch(self, anchor_branch: int, coin: float) -> int:
        """The infrared branch for visible anchors; for infrared ones, a visible branch by the anchor's coin."""
        if anchor_branch != Branch.INFRARED:
            return Branch.INFRARED
        return Branch.AUGMENTED if self.augmented and coin >= 0.5 else Branch.VISIBLE


def _slot_order(slots: _Slots, uniform_BD: np.ndarray, label: int, branch: int) -> list[int]:
    """The permutation of the target slots for the anchors of one identity and branch."""
    targets = slots.rows(label, Branch.VISIBLE if branch == Branch.INFRARED else Branch.INFRARED)
    anchors = slots.rows(label, branch)
    if len(anchors) != len(targets):
        raise InputError(
            f"expected equally many images of an identity in both modalities, got {len(anchors)} and {len(targets)} for"
            f" label {label}; fill each identity up to images_per_identity by repeating images"
        )
    order: list[int] = np.argsort(uniform_BD[targets, branch], kind="stable").tolist()
    return order


def draw_pairs(
    label_B: torch.Tensor,
    branch_B: torch.Tensor,
    group_B: torch.Tensor,
    position_B: torch.Tensor,
    *,
    seed: int,
    epoch: int,
    step: int,
    layer: Literal[3, 4],
    direction: Direction = "both",
) -> Pairs:
    """One layer's pairs for a rank's rows, on the device of `label_B`. For the arguments see `interfaces.Batch`.

    The draw is made on the host: columns on a GPU are copied back, and the host waits for each.

    positive: the K anchors of an identity and branch get, by a permutation, its K images of the other modality, each
    once. negative: a uniform other identity of the anchor's group, then a uniform slot, in the positive's branch. The
    targets of anchors V0 and V1 are in I, those of an anchor I in V0 or V1 by a fair coin, or in V0 if there is no V1.
    Anchors ascend by row. Raises InputError for an identity that is alone in its group, lacks a modality, or has
    unequal numbers of images.
    """
    columns = [column_B.cpu().numpy() for column_B in (label_B, branch_B, group_B, position_B)]
    labels, branches = columns[0].tolist(), columns[1].tolist()
    slots = _Slots(*columns)
    stream = Stream.PAIRS_LAYER3 if layer == 3 else Stream.PAIRS_LAYER4
    uniform_BD = uniform(stream, seed, epoch, step, position=columns[3][:, None], draw=np.arange(_DRAWS)[None, :])
    anchors: list[int] = []
    positives: dict[int, int] = {}
    negatives: dict[int, int] = {}
    for label, branch in sorted(set(zip(labels, branches, strict=True))):
        if direction == "visible_to_infrared" and branch == Branch.INFRARED:
            continue
        others = slots.others(label)
        order = _slot_order(slots, uniform_BD, label, branch)
        for row, slot in zip(slots.rows(label, branch), order, strict=True):
            target = slots.target_branch(branch, uniform_BD[row, _COIN])
            other = slots.rows(others[int(uniform_BD[row, _OTHER_IDENTITY] * len(others))], target)
            anchors.append(row)
            positives[row] = slots.rows(label, target)[slot]
            negatives[row] = other[int(uniform_BD[row, _OTHER_SLOT] * len(other))]
    anchors.sort()
    chosen = (anchors, [positives[row] for row in anchors], [negatives[row] for row in anchors])
    return Pairs(*(torch.tensor(rows, dtype=torch.int64, device=label_B.device) for rows in chosen))
