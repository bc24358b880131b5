"""The options of launch/evaluate.py, and the settings they stand for."""

import argparse
from dataclasses import astuple

from pydantic import ValidationError

from tacaf.data.index import ShardIndex
from tacaf.evaluation.__main__ import locations_of
from tacaf.evaluation.config import EvaluationConfig
from tacaf.evaluation.protocols import PROTOCOLS
from tacaf.evaluation.rerank import Rerank
from tacaf.evaluation.trials import choose_setting
from tacaf.files import shown
from tacaf.vocabulary import Embedding, InputError


def check_protocol(index: ShardIndex, protocol: str) -> None:
    """InputError for a set that was packed as one public data set and is to be scored as another one."""
    others = [name for name, table in PROTOCOLS.items() if not table.open and name != protocol]
    if index.name in others and not PROTOCOLS[protocol].open:
        raise InputError(
            f"expected the protocol {index.name} for {shown(index.place)}, which was packed as {index.name}, got"
            f" {protocol}; take {index.name}, or generic"
        )


def chosen_settings(arguments: argparse.Namespace, index: ShardIndex, usual: Embedding) -> EvaluationConfig:
    """The command's options as settings, with the embedding that is usual for the model unless they name another.

    InputError for what the protocol does not define.
    """
    check_protocol(index, arguments.protocol)
    locations = locations_of(arguments.locations)
    if arguments.exclude == "location" and not locations:
        locations = index.locations or {}
    choices = {
        "exclude": arguments.exclude,
        "locations": locations,
        **{name: getattr(arguments, name) for name in ("query_list", "gallery_list")},
    }
    choose_setting(arguments.protocol, arguments.mode, arguments.direction, **choices)
    values = {
        "modes": [arguments.mode] if arguments.mode else None,
        "directions": [arguments.direction] if arguments.direction and not arguments.mode else None,
        "shots": [arguments.shots] if arguments.shots else None,
        **{name: getattr(arguments, name) for name in ("protocol", "gallery_draw", "splits", "metric")},
        "embedding": arguments.embedding or usual,
        "batch_size": arguments.batch_size,
        "rerank": None if arguments.rerank is None else astuple(Rerank.of(arguments.rerank)),
        **choices,
    }
    try:
        return EvaluationConfig.model_validate({name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        raise InputError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
