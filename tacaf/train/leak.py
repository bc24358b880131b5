"""Checks of what a model may be scored on.

A model may not be scored on its training identities, as far as the shard set and the model file record them, and a
public data set may be scored only under its own protocol.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tacaf.data.index import ShardIndex
from tacaf.datasets import own_test_split
from tacaf.evaluation.protocols import PROTOCOLS
from tacaf.files import shown
from tacaf.model.file import ModelCard
from tacaf.vocabulary import InputError


def check_protocol(index: ShardIndex, protocol: str) -> None:
    """Raise InputError if the set was packed as one public data set and would be scored as another one."""
    others = [name for name, table in PROTOCOLS.items() if not table.open and name != protocol]
    if index.name in others and not PROTOCOLS[protocol].open:
        raise InputError(
            f"expected the protocol {index.name} for {shown(index.place)}, which was packed as {index.name}, got"
            f" {protocol}; use {index.name}, or generic"
        )


def refuse_leak(index: ShardIndex, trained_on: Mapping[str, Any], pids: np.ndarray) -> None:
    """Raise InputError if the model was trained on identities that are to be scored (identity leakage).

    A model file records the set's name, the hash of its index, and the split. The same hash proves which pids these
    were. Another hash under the same name means that the data set was packed again or that a person was removed: its
    split of that name is then taken as the training split, and without such a split the model is refused, because
    nothing can be checked. Pids of a set with another name are other people.
    """
    again = trained_on.get("sha256") != index.sha256
    if again and trained_on.get("set") != index.name:
        return
    which = f"the set {index.name!r}" + (", packed again since" if again else "")
    try:
        trained = index.pids_of(trained_on["split"])
    except InputError:
        raise InputError(
            f"expected the split {trained_on['split']!r}, which the model was trained on, in {which}, got "
            f"{', '.join(sorted(index.splits))}; without it the training identities are unknown: pack the set with "
            "its splits, or under another name if it shows other people"
        ) from None
    seen = np.intersect1d(trained, pids)
    if len(seen):
        raise InputError(
            f"expected identities that the model has not seen, got {len(seen)} that it was trained on (split"
            f" {trained_on['split']!r} of {which}, first pid {seen[0]}); score the split that belongs to this model, "
            f"{own_test_split(trained_on['split'])}"
        )


def refuse_other_set(run: Path, card: ModelCard, index: ShardIndex) -> None:
    """Raise InputError unless the run's model was trained on exactly this set."""
    if card.trained_on["sha256"] != index.sha256:
        raise InputError(
            f"expected the set that {run} was trained on, {card.trained_on['set']} with the index hash"
            f" {card.trained_on['sha256'][:12]}, got {index.name} with {index.sha256[:12]}; give that set with --shards"
        )


def refuse_mixed(cards: Sequence[ModelCard]) -> None:
    """Raise InputError unless these models have one data set and different splits, so that one table fits them."""
    names = {card.trained_on.get("set") for card in cards}
    if len(names) > 1:
        raise InputError(f"expected models of one data set, got {', '.join(sorted(map(str, names)))}; leave some out")
    splits = [card.trained_on["split"] for card in cards]
    twice = next((split for split in splits if splits.count(split) > 1), None)
    if twice:
        raise InputError(f"expected one model per split, got {splits.count(twice)} trained on {twice!r}; leave one out")
