"""A gallery that can be kept: descriptors of images with their names, to search, to let grow, to take people out of.

One safetensors file: `descriptors` float32 [n, d], `sha256` uint8 [n, 32] of the files' bytes, `names` uint8 (JSON),
and the hash of the model in its metadata. Nothing is pickled; the images themselves are not in it. Q queries, G images,
D numbers. Source: ours.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tacaf import files
from tacaf.data.photo import decode, images_below, links_outside, prepare, read_file
from tacaf.files import shown, whole_path
from tacaf.inference import Embedder, Embedding
from tacaf.vocabulary import InputError, Modality

FORMAT, VERSION = "tacaf-catalogue", 1
SAVE_EVERY = 10_000  # images embedded between two saves: what a kill can cost
_BATCH = 32


class Embedded(NamedTuple):
    """Some images of a list of paths: those that could be read."""

    places_N: list[int]  # in the list
    sha256_N: list[str]
    descriptors_ND: np.ndarray  # float32
    unreadable: list[str]  # a sentence for each of the others


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

    @classmethod
    def new(
        cls, embedder: Embedder, modality: Modality, embedding: Embedding | None = None, flip: bool = False
    ) -> "Catalogue":
        """An empty one. embedding: None for the one that the model's own scores are of."""
        embedding = embedding or embedder.usual_embedding
        empty = np.empty((0, embedder.embedding_width(embedding)), np.float32)
        return cls(embedder.model_sha256, modality, embedding, flip, empty)

    @classmethod
    def open(cls, path: Path) -> "Catalogue":
        """Read and check a file that `save` wrote. InputError for any other."""
        try:
            with safe_open(path, "np") as file:
                facts = json.loads((file.metadata() or {}).get("tacaf", "{}"))
                descriptors_GD, sha256_G = file.get_tensor("descriptors"), file.get_tensor("sha256")
                names = json.loads(file.get_tensor("names").tobytes())
            if (facts.pop("format"), facts.pop("version")) != (FORMAT, VERSION):
                raise ValueError(f"another format than {FORMAT} {VERSION}")
            if descriptors_GD.dtype != np.float32 or not len(descriptors_GD) == len(sha256_G) == len(names):
                raise ValueError("parts that do not fit")
            if not np.isfinite(descriptors_GD).all():
                raise ValueError("NaN or infinity among the descriptors")
            facts["modality"] = Modality(facts["modality"])
            return cls(
                **facts, descriptors_GD=descriptors_GD, names=names, sha256=[one.tobytes().hex() for one in sha256_G]
            )
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"expected a gallery index at {path}, got: {reason}; make it again with --gallery"
            ) from None

    def save(self, path: Path) -> None:
        """Write the file whole or not at all."""
        facts = {
            "format": FORMAT, "version": VERSION, "model_sha256": self.model_sha256, "modality": str(self.modality),
            "embedding": self.embedding, "flip": self.flip,
        }  # fmt: skip
        hashes = np.frombuffer(bytes.fromhex("".join(self.sha256)), np.uint8).reshape(-1, 32)
        names = np.frombuffer(json.dumps(self.names).encode(), np.uint8)
        tensors = {"descriptors": self.descriptors_GD, "sha256": hashes, "names": names}
        with whole_path(path) as made:
            save_file(tensors, made, {"tacaf": json.dumps(facts)})

    def must_fit(self, embedder: Embedder, embedding: Embedding, flip: bool) -> None:
        """InputError unless descriptors of this model compare with those in here."""
        if self.model_sha256 != embedder.model_sha256:
            raise InputError(
                f"expected the model the index was made with ({self.model_sha256[:12]}...), got"
                f" {embedder.model_sha256[:12]}...; take that model, or make the index again"
            )
        if (self.embedding, self.flip) != (embedding, flip):
            own, got = (f"{kind}{' with flip' if mirrored else ''}" for kind, mirrored in
                        ((self.embedding, self.flip), (embedding, flip)))  # fmt: skip
            raise InputError(f"expected the index's descriptors, {own}, got {got}; ask for the same")

    def add(self, embedder: Embedder, folder: Path, save: Callable[[], None] = lambda: None) -> tuple[int, list[str]]:
        """Embed the images below `folder` that are not in yet, by content; how many came in, and what was left out.

        `save` is called every SAVE_EVERY images. InputError where a name stands for another image than before.
        """
        paths, left_out = images_below(folder), about_links(folder)
        before = len(self.names)
        for start in range(0, len(paths), SAVE_EVERY):
            some = paths[start : start + SAVE_EVERY]
            found = embed_files(embedder, some, self.modality, self.embedding, self.flip, known=set(self.sha256))
            self._take(found, [some[place].relative_to(folder).as_posix() for place in found.places_N])
            left_out += found.unreadable
            if start + SAVE_EVERY < len(paths):
                save()
        return len(self.names) - before, left_out

    def _take(self, found: Embedded, names: Sequence[str]) -> None:
        held = set(self.names)
        for name in names:
            if name in held:
                raise InputError(
                    f"expected the image that the index knows as {name}, got another one of that name; remove {name}"
                    " from the index first, or give the folder it was made from"
                )
        self.names += names
        self.sha256 += found.sha256_N
        self.descriptors_GD = np.concatenate([self.descriptors_GD, found.descriptors_ND])

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


def about_links(folder: Path) -> list[str]:
    """A sentence for each image that is left out because a link takes it from outside of the folder."""
    return [f"{path}: expected an image inside {folder}, got a link to elsewhere" for path in links_outside(folder)]


def embed_files(
    embedder: Embedder,
    paths: Sequence[Path],
    modality: Modality,
    embedding: Embedding | None = None,
    flip: bool = False,
    known: set[str] | None = None,
) -> Embedded:
    """Descriptors of image files, each file read once. Contents in `known`, which grows, are passed over."""
    found = Embedded([], [], np.empty((0, embedder.embedding_width(embedding)), np.float32), [])
    parts, waiting = [found.descriptors_ND], []
    for place, content, image_CHW in _readable(embedder, paths, known, found.unreadable):
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
    embedder: Embedder, paths: Sequence[Path], known: set[str] | None, unreadable: list[str]
) -> Iterator[tuple[int, str, torch.Tensor]]:
    """Place, content hash and prepared image of each file that can be read and is not known."""
    for place, path in enumerate(paths):
        try:
            data = read_file(path)
            content = hashlib.sha256(data).hexdigest()
            if known is not None and content in known:
                continue
            image_CHW = prepare(decode(data, name=str(path)), embedder.height, embedder.width)
        except InputError as error:
            unreadable.append(str(error))
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
