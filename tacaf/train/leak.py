"""What a model may be scored on: not the identities it was trained on, as far as shard set and model file record them,
and a public data set only under its own protocol.
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
    """InputError for a set that was packed as one public data set and is to be scored as another one."""
    others = [name for name, table in PROTOCOLS.items() if not table.open and name != protocol]
    if index.name in others and not PROTOCOLS[protocol].open:
        raise InputError(
            f"expected the protocol {index.name} for {shown(index.place)}, which was packed as {index.name}, got"
            f" {protocol}; use {index.name}, or generic"
        )


def refuse_leak(index: ShardIndex, trained_on: Mapping[str, Any], pids: np.ndarray) -> None:
    """InputError if the model was trained on identities that are to be scored (identity leakage).

    A model file says the set's name, the hash of its index, and the list. The same hash proves which pids those were.
    Another hash under the same name is the same data set packed again, or a person taken out: its list of that name is
    taken for the one trained on, and where it has none nothing can be shown, which is refused too. Pids of a set of
    another name mean other people.
    """
    again = trained_on.get("sha256") != index.sha256
    if again and trained_on.get("set") != index.name:
        return
    which = f"the set {index.name!r}" + (", packed again since" if again else "")
    try:
        trained = index.pids_of(trained_on["split"])
    except InputError:
        raise InputError(
            f"expected the list {trained_on['split']!r}, which the model was trained on, in {which}, got "
            f"{', '.join(sorted(index.splits))}; without it nobody can tell whom the model has seen: pack the set with "
            "its lists, or under another name if it shows other people"
        ) from None
    seen = np.intersect1d(trained, pids)
    if len(seen):
        raise InputError(
            f"expected identities the model has not seen, got {len(seen)} that it was trained on (split"
            f" {trained_on['split']!r} of {which}, first pid {seen[0]}); score the split that belongs to this model, "
            f"{own_test_split(trained_on['split'])}"
        )


def refuse_other_set(run: Path, card: ModelCard, index: ShardIndex) -> None:
    """InputError unless the run's model was trained on this very set, for what is measured of a training on its set."""
    if card.trained_on["sha256"] != index.sha256:
        raise InputError(
            f"expected for {run} the set it was trained on, {card.trained_on['set']} with index"
            f" {card.trained_on['sha256'][:12]}, got {index.name} with {index.sha256[:12]}; give that one with --shards"
        )


def refuse_mixed(cards: Sequence[ModelCard]) -> None:
    """InputError unless these models are one a split of one data set, so that their scores may stand in one table."""
    names = {card.trained_on.get("set") for card in cards}
    if len(names) > 1:
        raise InputError(f"expected models of one data set, got {', '.join(sorted(map(str, names)))}; leave some out")
    splits = [card.trained_on["split"] for card in cards]
    twice = next((split for split in splits if splits.count(split) > 1), None)
    if twice:
        raise InputError(f"expected one model a split, got {splits.count(twice)} trained on {twice!r}; leave one out")
