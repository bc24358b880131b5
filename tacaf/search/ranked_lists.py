"""Searching a catalogue, and its result: the nearest images for each query. Q queries, K matches."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tacaf.data.photo import images_below, left_out_below
from tacaf.model.file import TrainedOn
from tacaf.search.catalogue import Catalogue
from tacaf.search.embedder import Embedder
from tacaf.search.image_files import EmbeddedFiles, embed_files
from tacaf.search.nearest import Engine, choose_engine, nearest
from tacaf.vocabulary import Embedding, InputError, Modality


@dataclass(frozen=True, kw_only=True)
class Match:
    """A gallery image at a rank, from 1."""

    rank: int
    name: str
    distance: float  # 1 - cosine similarity, six decimals


@dataclass(frozen=True, kw_only=True)
class RankedList:
    """A query and its matches, nearest first."""

    query: str  # its name relative to the query folder
    sha256: str  # of its file
    matches: list[Match]


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The lists of all queries and their circumstances; launch/search.py --json writes `as_json`."""

    format: Literal["tacaf-search"] = "tacaf-search"
    version: Literal[1] = 1
    model_sha256: str
    trained_on: TrainedOn
    embedding: Embedding
    flip: bool
    query_modality: Modality
    gallery_modality: Modality
    gallery_images: int
    engine: Literal["exact", "faiss"]
    top: int
    queries: list[RankedList]
    left_out: list[str]  # a sentence for each file of gallery and queries that was left out

    def as_json(self) -> dict[str, Any]:
        """The fields as values for JSON."""
        return asdict(self)


def search(
    embedder: Embedder,
    catalogue: Catalogue,
    query: Path,
    query_modality: Modality,
    *,
    top: int,
    engine: Engine,
    left_out: Sequence[str] = (),
) -> SearchResult:
    """The `top` nearest images of each readable query, without files whose content is that of the query.

    query: a folder of images, or one image. left_out: sentences about the gallery, for the result. Raises InputError if
    the catalogue is empty or no query can be read.
    """
    if not catalogue.names:
        raise InputError("expected images in the gallery, got an empty index; add some with --gallery")
    names, queries, query_left_out = _embed_queries(embedder, catalogue, query, query_modality)
    copies = Counter(catalogue.sha256)  # a query's copies in the catalogue are dropped from its list below
    most = top + max((copies[content] for content in queries.sha256_N), default=0)
    row_QK, distance_QK = nearest(queries.descriptors_ND, catalogue.descriptors_GD, most, engine)
    lists = []
    for name, content, row_K, distance_K in zip(names, queries.sha256_N, row_QK, distance_QK, strict=True):
        kept = [k for k, row in enumerate(row_K) if catalogue.sha256[row] != content][:top]
        matches = [
            Match(rank=rank, name=catalogue.names[row_K[k]], distance=round(float(distance_K[k]), 6))
            for rank, k in enumerate(kept, 1)
        ]
        lists.append(RankedList(query=name, sha256=content, matches=matches))
    return SearchResult(
        model_sha256=catalogue.model_sha256,
        trained_on=embedder.card.trained_on,
        embedding=catalogue.embedding,
        flip=catalogue.flip,
        query_modality=query_modality,
        gallery_modality=catalogue.modality,
        gallery_images=len(catalogue.names),
        engine=choose_engine(engine, len(catalogue.names)),
        top=top,
        queries=lists,
        left_out=[*left_out, *query_left_out, *queries.unreadable],
    )


def _embed_queries(
    embedder: Embedder, catalogue: Catalogue, query: Path, modality: Modality
) -> tuple[list[str], EmbeddedFiles, list[str]]:
    """Names and descriptors of the query images, and a sentence for each file that was left out."""
    folder, paths, left_out = query.parent, [query], []
    if query.is_dir():
        folder, paths, left_out = query, images_below(query), left_out_below(query)
    files = embed_files(embedder, paths, modality, catalogue.embedding, catalogue.flip)
    if not files.places_N:
        first = f"; the first: {files.unreadable[0]}" if files.unreadable else ""
        raise InputError(f"expected readable query images in {query}, got none{first}; check the path")
    return [paths[place].relative_to(folder).as_posix() for place in files.places_N], files, left_out
