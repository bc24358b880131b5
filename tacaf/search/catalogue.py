"""A gallery that can be kept: descriptors of images with their names, to search, to let grow, to take people out of.

One safetensors file: `descriptors` float32 [n, d], `sha256` uint8 [n, 32] of the files' bytes, `names` uint8 (JSON),
and the hashes of the model and of the file itself in its metadata. Nothing is pickled; the images themselves are not in
it. Q queries, G images, D numbers. Source: ours.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field

from tacaf import files
from tacaf.data.photo import images_below, left_out_below, read_file
from tacaf.documents import Document, Sha256, load_json
from tacaf.files import shown
from tacaf.images import GreyScale
from tacaf.search.embedder import Embedder
from tacaf.tensors import TensorFile, save_sealed
from tacaf.vocabulary import Embedding, InputError, Modality

FORMAT, VERSION = "tacaf-catalogue", 2  # 2: with a seal, and the scale of grey values
CURE = "make it again with --gallery"
SAVE_EVERY = 10_000  # images embedded between two saves: what a kill can cost
MOST_NAME = 2**14  # letters; more than any file system gives a path
MOST_NAMES_BYTES = 2**32
_UNIT = 1e-3  # how far a descriptor's length may be from 1
_BATCH = 32


class IndexFacts(Document):
    """The metadata of a kept gallery."""

    format: Literal["tacaf-catalogue"]
    version: Literal[1, 2]
    model_sha256: Sha256
    modality: Modality
    embedding: Embedding
    flip: bool
    scale: GreyScale | None = Field(None, description="how grey of more than 8 bits became 8")
    seal: Sha256 | None = Field(None, description="sha256 of the file with 64 zeros in place of the seal")


class Embedded(NamedTuple):
    """Some images of a list of paths: those that could be read."""

    places_N: list[int]  # in the list
    sha256_N: list[str]
    descriptors_ND: np.ndarray  # float32
    unreadable: list[str]  # a sentence for each of the others
    again_N: list[tuple[int, str]]  # places and contents that were known already


@dataclass
class Catalogue:
    """Images by name, in the order they came in. Only descriptors of the same model, embedding and flip compare."""

    model_sha256: str
    modality: Modality
    embedding: Embedding
    flip: bool
    descriptors_GD: np.ndarray
    names: list[str] = field(default_factory=list)  # below the folder they came from, with /
    sha256: list[str] = field(default_factory=list)
    scale: GreyScale | None = None  # how grey of more than 8 bits became 8
    sealed: bool = True  # whether its file carried a hash: those of version 1 do not

    @classmethod
    def new(
        cls, embedder: Embedder, modality: Modality, embedding: Embedding | None = None, flip: bool = False
    ) -> "Catalogue":
        """An empty one. embedding: None for the one that the model's own scores are of."""
        embedding = embedding or embedder.usual_embedding
        empty = np.empty((0, embedder.embedding_width(embedding)), np.float32)
        return cls(embedder.model_sha256, modality, embedding, flip, empty, scale=embedder.scales.get(modality))

    @classmethod
    def open(cls, path: Path) -> "Catalogue":
        """Read and check a file that `save` wrote. InputError for any other."""
        try:
            return cls._read(path)
        except InputError as error:
            raise InputError(f"expected a gallery index at {shown(path)}, got: {error}; {CURE}") from None

    @classmethod
    def _read(cls, path: Path) -> "Catalogue":
        file = TensorFile.open(path)
        facts = file.document(IndexFacts, CURE)
        if facts.version > 1 or facts.seal is not None:
            file.check_seal(CURE)
        _check_form(file)
        parts = file.read(file.tensors)
        names = load_json(parts["names"].numpy().tobytes(), "names", MOST_NAMES_BYTES)
        descriptors_GD = parts["descriptors"].numpy()
        _check_names(names, len(descriptors_GD))
        _check_lengths(descriptors_GD)
        return cls(
            **facts.model_dump(include={"model_sha256", "modality", "embedding", "flip"}),
            descriptors_GD=descriptors_GD,
            names=names,
            sha256=[row.tobytes().hex() for row in parts["sha256"].numpy()],
            scale=facts.scale,
            sealed=facts.seal is not None,
        )

    def save(self, path: Path) -> None:
        """Write the file whole or not at all."""
        facts = {
            "format": FORMAT,
            "version": VERSION,
            "model_sha256": self.model_sha256,
            "modality": str(self.modality),
            "embedding": self.embedding,
            "flip": self.flip,
            "scale": self.scale and self.scale.model_dump(mode="json"),
        }
        hashes = np.frombuffer(bytearray.fromhex("".join(self.sha256)), np.uint8).reshape(-1, 32)
        names = np.frombuffer(bytearray(json.dumps(self.names), "ascii"), np.uint8)
        tensors = {"descriptors": self.descriptors_GD, "sha256": hashes, "names": names}
        save_sealed(path, {name: torch.from_numpy(array) for name, array in tensors.items()}, facts)

    def must_fit(self, embedder: Embedder, embedding: Embedding, flip: bool) -> None:
        """InputError unless descriptors of this model compare with those in here."""
        if self.model_sha256 != embedder.model_sha256:
            raise InputError(
                f"expected the model the index was made with ({self.model_sha256[:12]}...), got"
                f" {embedder.model_sha256[:12]}...; take that model, or make the index again"
            )
        if (self.embedding, self.flip) != (embedding, flip):
            own, got = (
                f"{kind}{' with flip' if mirrored else ''}"
                for kind, mirrored in ((self.embedding, self.flip), (embedding, flip))
            )
            raise InputError(f"expected the index's descriptors, {own}, got {got}; ask for the same")
        scale = embedder.scales.get(self.modality)
        if self.sealed and scale != self.scale:
            own, got = ("none" if one is None else one.describe() for one in (self.scale, scale))
            raise InputError(
                f"expected the range of grey values that the index was made with, {own}, got {got}; give the same"
                " --thermal-range, or make the index again"
            )
        width = embedder.embedding_width(embedding)
        if self.descriptors_GD.shape[1] != width:
            raise InputError(
                f"expected descriptors {width} wide, as the model's are, got {self.descriptors_GD.shape[1]}; {CURE}"
            )
        scale = embedder.scales.get(self.modality)
        if self.sealed and scale != self.scale:
            own, got = (one.describe() if one else "none" for one in (self.scale, scale))
            raise InputError(
                f"expected the index's range of grey values, {own}, got {got}; give the same --thermal-range, or make"
                " the index again"
            )

    def add(self, embedder: Embedder, folder: Path, save: Callable[[], None] = lambda: None) -> tuple[int, list[str]]:
        """Embed the images below `folder` that are not in yet, by content; how many came in, and what was left out.

        An image whose content is in under another name comes in under its own as well, and is not embedded again.
        `save` is called every SAVE_EVERY images. InputError where a name stands for another image than before.
        """
        paths, left_out = images_below(folder), left_out_below(folder)
        before = len(self.names)
        for start in range(0, len(paths), SAVE_EVERY):
            some = paths[start : start + SAVE_EVERY]
            found = embed_files(embedder, some, self.modality, self.embedding, self.flip, known=set(self.sha256))
            self._take(found, [path.relative_to(folder).as_posix() for path in some])
            left_out += found.unreadable
            if start + SAVE_EVERY < len(paths):
                save()
        return len(self.names) - before, left_out

    def _take(self, found: Embedded, names: Sequence[str]) -> None:
        """Add what was embedded, and further names of contents that are in already. names: of all the files."""
        held = dict(zip(self.names, self.sha256, strict=True))
        again = [(place, content) for place, content in found.again_N if held.get(names[place]) != content]
        for name in (names[place] for place in (*found.places_N, *(place for place, _ in again))):
            if name in held:
                raise InputError(
                    f"expected the image that the index knows as {shown(name)}, got another one of that name; remove"
                    f" {shown(name)} from the index first, or give the folder it was made from"
                )
        _check_lengths(found.descriptors_ND)
        self.names += [names[place] for place in found.places_N]
        self.sha256 += found.sha256_N
        descriptors_GD = np.concatenate([self.descriptors_GD, found.descriptors_ND])
        row_of = {content: row for row, content in enumerate(self.sha256)}
        rows = [row_of[content] for _, content in again]
        self.names += [names[place] for place, _ in again]
        self.sha256 += [content for _, content in again]
        self.descriptors_GD = np.concatenate([descriptors_GD, descriptors_GD[rows]])

    def remove(self, words: Sequence[str]) -> list[str]:
        """Take images out; their names. A word is a name, a folder of names, or an image file, known by its content.

        InputError, and nothing is taken out, if there is nothing for one of them.
        """
        gone: set[int] = set()
        for word in words:
            inside = word.rstrip("/") + "/"
            found = {row for row, own in enumerate(self.names) if own == word or own.startswith(inside)}
            if not found and Path(word).is_file():
                content = hashlib.sha256(read_file(Path(word))).hexdigest()
                found = {row for row, own in enumerate(self.sha256) if own == content}
            if not found:
                raise InputError(
                    f"expected a name, a folder or an image of the index to remove, got {word!r}, which it has not;"
                    " nothing was removed: --list shows the names"
                )
            gone |= found
        removed = [self.names[row] for row in sorted(gone)]
        kept = [row for row in range(len(self.names)) if row not in gone]
        self.names, self.sha256 = [self.names[row] for row in kept], [self.sha256[row] for row in kept]
        self.descriptors_GD = self.descriptors_GD[kept]
        return removed


def _check_form(file: TensorFile) -> None:
    """InputError unless the three tensors are there, of the right types, and agree in the number of images."""
    dtypes = {"descriptors": "F32", "sha256": "U8", "names": "U8"}
    found = {name: facts.dtype for name, facts in file.tensors.items()}
    if found != dtypes:
        raise InputError(f"expected the tensors {dtypes}, got {shown(found)[:200]}")
    descriptors, hashes, names = (file.tensors[name].shape for name in dtypes)
    if len(descriptors) != 2 or descriptors[1] == 0 or hashes != (descriptors[0], 32) or len(names) != 1:
        raise InputError(
            f"parts that do not fit: descriptors {list(descriptors)}, sha256 {list(hashes)}, names {list(names)}"
        )


def _check_names(names: Any, count: int) -> None:
    """InputError unless these are as many different paths that stay below their folder."""
    if not isinstance(names, list) or len(names) != count:
        got = f"{len(names)} of them" if isinstance(names, list) else type(names).__name__
        raise InputError(f"names: expected a list of {count} names, got {got}")
    for name in names:
        if not isinstance(name, str) or not 0 < len(name) <= MOST_NAME:
            raise InputError(f"names: expected texts of 1 to {MOST_NAME} letters, got {shown(name)[:60]!r}")
        if name.startswith("/") or "\0" in name or ".." in name.split("/"):
            raise InputError(f"names: expected paths below a folder, got {shown(name)[:60]!r}")
    if len(set(names)) != count:
        raise InputError("names: expected every name once, got one twice")


def _check_lengths(descriptors_ND: np.ndarray) -> None:
    """InputError unless every descriptor is of length 1, which excludes NaN and a model that gives zeros."""
    lengths_N = np.sqrt(np.einsum("nd,nd->n", descriptors_ND, descriptors_ND))
    bad = np.flatnonzero(~(np.abs(lengths_N - 1) <= _UNIT))
    if bad.size:
        raise InputError(
            f"expected descriptors of length 1, got {lengths_N[bad[0]]:g} in row {bad[0]} ({bad.size} such rows)"
        )


def embed_files(
    embedder: Embedder,
    paths: Sequence[Path],
    modality: Modality,
    embedding: Embedding | None = None,
    flip: bool = False,
    known: set[str] | None = None,
) -> Embedded:
    """Descriptors of image files, each file read once. Contents in `known`, which grows, are named and not embedded."""
    found = Embedded([], [], np.empty((0, embedder.embedding_width(embedding)), np.float32), [], [])
    parts, waiting = [found.descriptors_ND], []
    for place, content, image_CHW in _readable(embedder, paths, modality, known, found):
        found.places_N.append(place)
        found.sha256_N.append(content)
        waiting.append(image_CHW)
        if len(waiting) == _BATCH:
            parts.append(embedder.embed_prepared(torch.stack(waiting), modality, embedding, flip))
            waiting = []
    if waiting:
        parts.append(embedder.embed_prepared(torch.stack(waiting), modality, embedding, flip))
    return found._replace(descriptors_ND=np.concatenate(parts))


def _readable(
    embedder: Embedder, paths: Sequence[Path], modality: Modality, known: set[str] | None, found: Embedded
) -> Iterator[tuple[int, str, torch.Tensor]]:
    """Place, content hash and prepared image of each file that can be read and is not known; `found` gets the rest."""
    for place, path in enumerate(paths):
        try:
            data = read_file(path)
            content = hashlib.sha256(data).hexdigest()
            if known is not None and content in known:
                found.again_N.append((place, content))
                continue
            image_CHW = embedder.read(data, modality, name=str(path))
        except InputError as error:
            found.unreadable.append(str(error))
            continue
        if known is not None:
            known.add(content)
        yield place, content, image_CHW


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """The index file for one process alone. InputError while another one writes it, or where nothing can be written."""
    busy = f"{shown(path)} is being written by another process; wait for it"
    with files.locked(path.with_name(f".{path.name}.lock"), wait=False, busy=busy):
        yield
