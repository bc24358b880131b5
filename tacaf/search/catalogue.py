"""A gallery that can be kept: descriptors of images with their names, to search, to add to, to take people out of.

The images themselves are not in it. `catalogue_file` saves and opens it. Q queries, G images, D numbers. Source: ours.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tacaf.data.photo import images_below, left_out_below, read_file
from tacaf.files import shown
from tacaf.images import GreyScale
from tacaf.search.embedder import Embedder
from tacaf.search.image_files import EmbeddedFiles, embed_files
from tacaf.vocabulary import Embedding, InputError, Modality

CURE = "make it again with --gallery"
SAVE_EVERY = 10_000  # images embedded between two saves: what a kill can cost
_UNIT = 1e-3  # how far a descriptor's length may be from 1


@dataclass(kw_only=True)
class Catalogue:
    """Images by name, in the order in which they were added. All descriptors are of one model, embedding and flip."""

    model_sha256: str
    modality: Modality
    embedding: Embedding
    flip: bool
    scale: GreyScale | None  # how grey of more than 8 bits became 8
    descriptors_GD: np.ndarray  # float32
    names: list[str] = field(default_factory=list)  # below the folder they came from, with /
    sha256: list[str] = field(default_factory=list)  # of the files' bytes

    @classmethod
    def new(
        cls, embedder: Embedder, modality: Modality, embedding: Embedding | None = None, flip: bool = False
    ) -> "Catalogue":
        """An empty one. embedding: None for the one that the model's own scores are of."""
        embedding = embedding or embedder.usual_embedding
        return cls(
            model_sha256=embedder.model_sha256,
            modality=modality,
            embedding=embedding,
            flip=flip,
            scale=embedder.scales.get(modality),
            descriptors_GD=np.empty((0, embedder.embedding_width(embedding)), np.float32),
        )

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
        if scale != self.scale:
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

    def _take(self, found: EmbeddedFiles, names: Sequence[str]) -> None:
        """Add what was embedded, and further names of contents that are in already. names: of all the files."""
        held = dict(zip(self.names, self.sha256, strict=True))
        again = [(place, content) for place, content in found.known if held.get(names[place]) != content]
        for name in (names[place] for place in (*found.places_N, *(place for place, _ in again))):
            if name in held:
                raise InputError(
                    f"expected the image that the index knows as {shown(name)}, got another one of that name; remove"
                    f" {shown(name)} from the index first, or give the folder it was made from"
                )
        check_lengths(found.descriptors_ND)
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


def check_lengths(descriptors_ND: np.ndarray) -> None:
    """InputError unless every descriptor is of length 1, which excludes NaN and a model that gives zeros."""
    lengths_N = np.sqrt(np.einsum("nd,nd->n", descriptors_ND, descriptors_ND))
    bad = np.flatnonzero(~(np.abs(lengths_N - 1) <= _UNIT))
    if bad.size:
        raise InputError(
            f"expected descriptors of length 1, got {lengths_N[bad[0]]:g} in row {bad[0]} ({bad.size} such rows)"
        )
