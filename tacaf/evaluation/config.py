"""The settings of an evaluation: what is scored at the end of a training, and how often during it."""

from collections.abc import Iterable
from typing import Literal, NamedTuple

from pydantic import Field, model_validator

from tacaf.evaluation.protocols import LISTED, PROTOCOLS
from tacaf.evaluation.ranking import Metric
from tacaf.evaluation.rerank import Rerank
from tacaf.evaluation.setting import Scoring, Setting, choose_setting
from tacaf.settings import Settings, UserPath
from tacaf.shard_set import Camid
from tacaf.vocabulary import Embedding, InputError, did_you_mean

MOST_EPOCHS = 10**6


class Asked(NamedTuple):
    """One search to score under a protocol."""

    mode: str | None
    direction: str | None
    shots: int


def _no_word(word: str, what: str, words: Iterable[str]) -> str:
    """An error text for a word that is not one of `words`, with a similar one."""
    *most, last = words
    advice = did_you_mean(word, [*most, last]) or "choose one of them"
    return f"expected {what} {', '.join(most)} or {last}, got {word!r}; {advice}"


class EvaluationConfig(Settings):
    """What is scored, and how often."""

    every: int = Field(
        10, ge=0, le=MOST_EPOCHS, description="Epochs between evaluations during training; 0: only at the end."
    )
    protocol: str = Field("sysu_mm01", description="sysu_mm01, regdb, llcm or generic.")
    split: Literal["test", "val"] = Field(
        "test",
        description=(
            "Identities scored at the end: test, or val while settings are being chosen (needs data.split: train)."
        ),
    )
    modes: tuple[str, ...] = Field(
        ("all_search", "indoor_search"),
        description="SYSU-MM01: modes scored at the end; during training only the first.",
    )
    directions: tuple[str, ...] = Field(
        (), description="Other protocols: directions scored at the end; empty: all that the protocol has."
    )
    shots: tuple[int, ...] = Field(
        (1, 10),
        description="Gallery images per identity and camera, scored at the end; during training only the first.",
    )
    gallery_draw: Literal["official", "literature"] | None = Field(
        None, description="null: official if the authors' permutations are given, otherwise literature."
    )
    splits: UserPath | None = Field(None, description="Folder with rand_perm_cam.mat, for the official draw.")
    metric: Metric = Field("cosine", description="Distance between embeddings.")
    embedding: Embedding = Field(
        "full",
        description=(
            "full: global feature, global node and part nodes; global_and_parts: without the global node; global_only:"
            " the global feature."
        ),
    )
    rerank: tuple[float, float, float] | None = Field(
        None, description="k1, k2, lambda of k-reciprocal re-ranking, usually 20, 6, 0.3; null: none."
    )
    exclude: str | None = Field(
        None,
        description=(
            "generic: which gallery images are left out of a query's list: none, camera, location or pid_and_camera."
        ),
    )
    locations: dict[Camid, Camid] = Field(
        default_factory=dict,
        description="generic with exclude: location: the location of every camera, as camid: location.",
    )
    query_list: UserPath | None = Field(
        None, description="generic: file with the keys of the query images, one per line."
    )
    gallery_list: UserPath | None = Field(
        None, description="generic: file with the keys of the gallery images, one per line."
    )
    batch_size: int = Field(64, ge=1, le=2**16, description="Images that are embedded at a time.")
    ranked_lists: int = Field(
        6,
        ge=0,
        le=40,
        description=(
            "Ranked lists in the report that are drawn by the seed; half as many of the best and of the worst are"
            " shown."
        ),
    )

    @model_validator(mode="after")
    def _defined(self) -> "EvaluationConfig":
        table = PROTOCOLS.get(self.protocol)
        if table is None:
            raise ValueError(f"protocol: {_no_word(self.protocol, 'protocol', PROTOCOLS)}")
        chosen = "modes" if table.selector == "mode" else "directions"
        for number, word in enumerate(getattr(self, chosen)):
            if word not in table.searches:
                raise ValueError(f"{chosen}[{number}]: {_no_word(word, table.selector, table.searches)}")
        if not self.asked():
            name = "shots" if self.modes else "modes"
            raise ValueError(f"{name}: expected at least one, got an empty list; name what is scored at the end")
        try:
            # Without reading the named files, which may be missing on the machine that reads this configuration.
            for asked in self.asked():
                self.setting(asked, read=False)
            self.reranking  # noqa: B018 - raises InputError for wrong numbers
        except InputError as error:
            raise ValueError(str(error)) from None
        return self

    def asked(self) -> list[Asked]:
        """What is scored at the end, in this order; during training only the first."""
        table = PROTOCOLS.get(self.protocol)
        if table is None or table.selector == "mode":
            return [Asked(mode, None, shots) for mode in self.modes for shots in self.shots]
        if self.query_list and self.gallery_list and not self.directions:
            return [Asked(None, LISTED, 1)]
        return [Asked(None, direction, 1) for direction in self.directions or table.default_searches]

    def setting(self, asked: Asked, read: bool = True) -> Setting:
        """The protocol with every choice made. Raises InputError for choices that it does not have.

        `read`: read the permutations and lists from their files.
        """
        return choose_setting(
            self.protocol,
            mode=asked.mode,
            direction=asked.direction,
            shots=asked.shots,
            gallery_draw=self.gallery_draw,
            splits=self.splits,
            exclude=self.exclude,
            locations=self.locations,
            query_list=self.query_list,
            gallery_list=self.gallery_list,
            read=read,
        )

    def for_split(self, split: str) -> "EvaluationConfig":
        """The settings for scoring a split. Reads the files that they name.

        The authors' permutations exist only for the test identities, so validation identities use the literature draw
        in place of the official one.
        """
        if split != "val" or self.setting(self.asked()[0]).gallery_draw != "official":
            return self
        return self.model_copy(update={"gallery_draw": "literature"})

    def settings(self) -> list[Setting]:
        """The settings of everything that is scored at the end, in the order of `asked`."""
        return [self.setting(asked) for asked in self.asked()]

    @property
    def scoring(self) -> Scoring:
        """How the features are compared."""
        return Scoring(metric=self.metric, rerank=self.reranking)

    @property
    def reranking(self) -> Rerank | None:
        """The re-ranking with its three numbers checked, or None."""
        return None if self.rerank is None else Rerank.of(self.rerank)
