"""The result of scoring: the typed model that `score` returns, and reading and writing its JSON."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from tacaf.datasets import own_test_split
from tacaf.documents import Count, Document, parse
from tacaf.evaluation.circumstances import Circumstances, Embedded, Facts, Origin, Seed, SplitName, Text, Versions
from tacaf.evaluation.config import EvaluationConfig
from tacaf.evaluation.ranking import MEASURES
from tacaf.evaluation.rerank import Reranking
from tacaf.files import read_bytes, shown, write_whole
from tacaf.vocabulary import Embedding, InputError

MOST_RESULT_BYTES = 2**26
CURE = "score the run again with launch/evaluate.py, or move the file out of the folder"

Share = Annotated[float, Field(ge=0, le=1)]
Counts = Count | list[Count]  # a list if the trials differ


class _Fields(Document):
    """A part of a result, whose fields can also be accessed as in its JSON: `result["mean"]["rank1"]`."""

    def __getitem__(self, name: str) -> Any:
        try:
            return getattr(self, name)
        except AttributeError:
            raise KeyError(name) from None


class Measures(_Fields):
    """A fraction for each measure."""

    rank1: Share
    rank5: Share
    rank10: Share
    rank20: Share
    mAP: Share
    mINP: Share


class Spreads(_Fields):
    """The sample standard deviation of each measure over the trials; null for one trial."""

    rank1: float | None
    rank5: float | None
    rank10: float | None
    rank20: float | None
    mAP: float | None
    mINP: float | None


assert tuple(Measures.model_fields) == tuple(Spreads.model_fields) == MEASURES


class Result(_Fields):
    """The scores of one model under one setting of a protocol; the fields are those of the JSON, in its order.

    Scores are fractions. Null means that a field does not apply or that a feature file does not record it. Fields with
    a default may be missing; unknown fields are kept.
    """

    model_config = ConfigDict(extra="allow")

    protocol: Text
    mode: Text | None = Field(description="sysu_mm01: all_search or indoor_search")
    direction: Text | None = Field(description="query to gallery, such as infrared_to_visible, or listed")
    split: SplitName = Field(description="the split that was scored")
    shots: Count | None = Field(description="gallery images of each identity and camera; null: every image")
    gallery_draw: Text | None = Field(description="official or literature; null: the gallery is not drawn")
    gallery_draw_note: Text | None
    metric: Text
    unique_ids: bool | None = Field(None, description="whether rank-k counts each identity once")
    exclusion: Text = Field(description="the gallery images that are left out of a query's list")
    locations: dict[Text, int] | None = Field(None, description="camera to location, for exclusion by location")
    query_list: Facts | None = Field(None, description="file, sha256 and images of a list of query images")
    gallery_list: Facts | None = Field(None, description="the same for a list of gallery images")
    embedding: Embedded
    embedding_width: Count
    part_weight: float | None = Field(None, description="weight of IPCAM's nodes in the embedding, if it has them")
    flip: bool | None = Field(description="whether embeddings are averaged with those of the mirror images")
    rerank: Literal[False] | Reranking
    trained_on: Origin = Field(description="set, sha256 of its index, split, and which epoch's model")
    scored_on: Origin = Field(None, description="set and sha256 of its index")
    seed: Seed = None
    trials: list[Measures] = Field(min_length=1)
    mean: Measures = Field(description="over the trials")
    std: Spreads
    queries: Counts
    valid_queries: Counts = Field(description="queries with at least one match in their list")
    gallery: Counts
    chance_rank1: Share = Field(description="the expected rank-1 of a random order")
    warnings: list[Text] = Field(default_factory=list, description="what makes the scores doubtful")
    versions: Versions = Field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The result as plain values, as it is written. Fields that were missing in its file are not added."""
        return self.model_dump(mode="json", exclude_unset=True)

    @property
    def search(self) -> str:
        """The mode or the direction, depending on which names the protocol's searches."""
        return self.mode or self.direction or ""

    @property
    def circumstances(self) -> Circumstances:
        """The facts about the model and the images, without width and versions, which scoring adds itself."""
        names = ("split", "embedding", "part_weight", "flip", "trained_on", "scored_on", "seed")
        return Circumstances.model_validate({name: getattr(self, name) for name in names})

    @property
    def on_own_set(self) -> bool:
        """Whether the scored images are from the model's training set. True if the result does not record that."""
        models = self.trained_on if isinstance(self.trained_on, list) else [self.trained_on]
        return not isinstance(self.scored_on, dict) or all(
            not isinstance(one, dict) or one.get("sha256") == self.scored_on.get("sha256") for one in models
        )

    def scored_as(self, settings: EvaluationConfig) -> bool:
        """Whether this was scored as a training with these settings scores its own model.

        That is, on the model's own set, with the settings' embedding, metric and re-ranking, without flip.
        """
        reranking = settings.reranking.facts if settings.reranking else False
        return (
            self.on_own_set
            and not self.flip
            and (self.embedding, self.metric, self.rerank) == (settings.embedding, settings.metric, reranking)
        )

    def same_kind(self, other: "Result") -> bool:
        """Whether this is the other one scored again, so that it may replace it: they differ only in scores."""
        names = ("scored_on", "split", "metric", "exclusion", "locations", "query_list", "gallery_list", "unique_ids")
        return len(self.trials) == len(other.trials) and all(
            getattr(self, name) == getattr(other, name) for name in names
        )

    def file_stem(self, usual: Embedding | None = None) -> str:
        """The name of its file: protocol, search, shots, draw, then everything that differs from a run's usual scoring.

        The embedding is included if it is not the `usual` one, the split if it does not belong to the model, and the
        set if it is not the model's training set.
        """
        parts = [
            self.protocol,
            self.search,
            f"{self.shots}shot" if self.shots else None,
            self.gallery_draw,
            f"{len(self.split)}splits" if isinstance(self.split, list) else None,
            self.embedding if usual and self.embedding != usual else None,
            "flip" if self.flip else None,
            "rerank" if self.rerank else None,
            self.split if isinstance(self.split, str) and self.split != self._own_split() else None,
            self._other_set(),
        ]
        return "-".join(str(part) for part in parts if part)

    def _own_split(self) -> str:
        """The split that belongs to the model."""
        trained_on = self.trained_on.get("split") if isinstance(self.trained_on, dict) else None
        return own_test_split(trained_on) if isinstance(trained_on, str) else "test"

    def _other_set(self) -> str | None:
        if self.on_own_set or not isinstance(self.scored_on, dict):
            return None
        return f"on-{self.scored_on['set']}-{str(self.scored_on['sha256'])[:8]}"


def read_result(path: Path) -> Result:
    """The result in a file. Raises InputError, naming file and field, if it is not valid."""
    return parse(read_bytes(path, MOST_RESULT_BYTES), Result, shown(path), MOST_RESULT_BYTES, CURE)


def read_results(folder: Path, usual: EvaluationConfig | None = None) -> list[Result]:
    """The results in a folder: those on the model's own set first, then by protocol, search and shots.

    Of results that agree in these, those scored as `usual` come first.
    """
    named = [(read_result(path), path.stem) for path in folder.glob("*.json")]

    def order(one: tuple[Result, str]) -> tuple[Any, ...]:
        result, name = one
        other = usual is not None and not result.scored_as(usual)
        return not result.on_own_set, result.protocol, result.search, result.shots or 0, other, len(name), name

    return [result for result, _ in sorted(named, key=order)]


def write_results(results: Sequence[Result], folder: Path, usual: Embedding | None = None) -> list[Path]:
    """Write each result into `folder` under its name. Returns the paths.

    `usual`: the embedding of the run's other results. A file with a result of another kind is never replaced; the new
    file then gets a number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for result in results:
        paths.append(_free_path(folder, result.file_stem(usual), result))
        write_whole(paths[-1], json.dumps(result.as_json(), indent=1))
    return paths


def _free_path(folder: Path, stem: str, result: Result) -> Path:
    """The first of stem.json, stem-2.json, ... that does not exist or has an earlier result of the same kind."""
    number = 1
    while True:
        path = folder / (f"{stem}.json" if number == 1 else f"{stem}-{number}.json")
        if not path.exists() or _holds_same_kind(path, result):
            return path
        number += 1


def _holds_same_kind(path: Path, result: Result) -> bool:
    try:
        return read_result(path).same_kind(result)
    except InputError:
        return False
