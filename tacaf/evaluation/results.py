"""Result files of a run: read with the fields that tables, reports and cards need, and told apart by their set."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from tacaf.documents import Count, Document, load_json, parse
from tacaf.evaluation.ranking import MEASURES
from tacaf.files import read_bytes, shown

MOST_RESULT_BYTES = 2**26
CURE = "score the run again with launch/evaluate.py, or take the file out of the folder"

Share = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(max_length=4096)]
Counts = Count | list[Count]


class _Measures(Document):
    """A share for each measure."""

    rank1: Share
    rank5: Share
    rank10: Share
    rank20: Share
    mAP: Share
    mINP: Share


class _Spreads(Document):
    """A sample standard deviation for each measure; null for one trial."""

    rank1: float | None
    rank5: float | None
    rank10: float | None
    rank20: float | None
    mAP: float | None
    mINP: float | None


assert set(_Measures.model_fields) == set(_Spreads.model_fields) == set(MEASURES)


class StoredResult(Document):
    """What readers need of a result (docs/protocols.md lists all of it); other fields are kept as they are."""

    model_config = ConfigDict(extra="allow")

    protocol: Text
    mode: Text | None
    direction: Text | None
    split: Text | int | list[Text] | None
    shots: Count | None
    gallery_draw: Text | None
    gallery_draw_note: Text | None
    metric: Text
    exclusion: Text
    embedding: Text | int | None
    embedding_width: Count
    flip: bool | None
    rerank: bool | dict[str, Any]
    trained_on: Text | dict[str, Any] | list[dict[str, Any]] | None
    scored_on: Text | dict[str, Any] | list[dict[str, Any]] | None = None
    trials: list[_Measures] = Field(min_length=1)
    mean: _Measures
    std: _Spreads
    queries: Counts
    valid_queries: Counts
    gallery: Counts
    chance_rank1: Share
    warnings: list[Text] = Field(default_factory=list)


def read_result(path: Path) -> dict[str, Any]:
    """A result as it was written. InputError, naming file and field, for anything else."""
    data, where = read_bytes(path, MOST_RESULT_BYTES), shown(path)
    parse(data, StoredResult, where, MOST_RESULT_BYTES, CURE)
    return load_json(data, where, MOST_RESULT_BYTES)


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The results in a folder; the shorter name first: what was scored otherwise than usual says so in its name."""
    paths = sorted(folder.glob("*.json"), key=lambda path: (len(path.name), path.name))
    return [read_result(path) for path in paths]


def on_own_set(result: Mapping[str, Any]) -> bool:
    """Whether a result is of the set that its model was trained on, as far as it says."""
    scored, trained = result.get("scored_on"), result.get("trained_on")
    models = trained if isinstance(trained, list) else [trained]
    return not isinstance(scored, dict) or all(
        not isinstance(one, dict) or one.get("sha256") == scored.get("sha256") for one in models
    )
