"""A catalogue: a gallery of image names and descriptors that can be saved, searched, extended, and reduced.

It does not contain the images themselves. `catalogue_file` saves and opens it. Q queries, G images, D numbers. Source:
ours.
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
SAVE_EVERY = 10_000  # images embedded between two saves, which a kill may lose
_UNIT = 1e-3  # how far a descriptor's length may be from 1


@dataclass(kw_only=True)
class Catalogue:
    """Images by name, in the order in which they were added. All descriptors have one model, embedding and flip."""

    model_sha256: str
    modality: Modality
    embedding: Embedding
    flip: bool
    scale: GreyScale | None  # how grey of more than 8 bits became 8
    descriptors_GD: np.ndarray  # float32
    names: list[str] = field(default_factory=list)  # relative to the folder that they were added from, with /
    sha256: list[str] = field(default_factory=list)  # of the files' bytes

    @classmethod
    def new(
        cls, embedder: Embedder, modality: Modality, embedding: Embedding | None = None, flip: bool = False
    ) -> "Catalogue":
        """An empty catalogue. embedding: None for the embedding that the model was scored with."""
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
        """Raise InputError unless descriptors of this model can be compared with those in the catalogue."""
        if self.model_sha256 != embedder.model_sha256:
            raise InputError(
                f"expected the model that the index was made with ({self.model_sha256[:12]}...), got"
                f" {embedder.model_sha256[:12]}...; use that model, or make the index again"
            )
        if (self.embedding, self.flip) != (embedding, flip):
            own, got = (
                f"{kind}{' with flip' if mirrored else ''}"
                for kind, mirrored in ((self.embedding, self.flip), (embedding, flip))
            )
            raise InputError(f"expected the index's descriptors, {own}, got {got}; use the same")
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
        """Embed and add images below `folder`. Returns how many were added, and sentences about files left out.

        An image whose content is already there is added under its new name, but not embedded again. `save` is called
        every SAVE_EVERY images. Raises InputError if a name already belongs to another image.
        """
        paths, left_out = images_below(folder), left_out_below(folder)
        before = len(self.names)
        for start in range(0, len(paths), SAVE_EVERY):
            some = paths[start : start + SAVE_EVERY]
            files = embed_files(embedder, some, self.modality, self.embedding, self.flip, known=set(self.sha256))
            self._take(files, [path.relative_to(folder).as_posix() for path in some])
            left_out += files.unreadable
            if start + SAVE_EVERY < len(paths):
                save()
        return len(self.names) - before, left_out

    def _take(self, files: EmbeddedFiles, names: Sequence[str]) -> None:
        """Add the embedded files, and new names of contents that are already there. names: those of all files."""
        content_of = dict(zip(self.names, self.sha256, strict=True))
        again = [(place, content) for place, content in files.known if content_of.get(names[place]) != content]
        for name in (names[place] for place in (*files.places_N, *(place for place, _ in again))):
            if name in content_of:
                raise InputError(
                    f"expected the image that the index has as {shown(name)}, got another one of that name; remove"
                    f" {shown(name)} from the index first, or give the folder that the index was made from"
                )
        check_lengths(files.descriptors_ND)
        self.names += [names[place] for place in files.places_N]
        self.sha256 += files.sha256_N
        descriptors_GD = np.concatenate([self.descriptors_GD, files.descriptors_ND])
        row_of = {content: row for row, content in enumerate(self.sha256)}
        rows = [row_of[content] for _, content in again]
        self.names += [names[place] for place, _ in again]
        self.sha256 += [content for _, content in again]
        self.descriptors_GD = np.concatenate([descriptors_GD, descriptors_GD[rows]])

    def remove(self, words: Sequence[str]) -> list[str]:
        """Remove images. Returns their names.

        A word is a name, a folder of names, or the path of an image file, which is found by its content. Raises
        InputError, without removing anything, if there is no image for one of the words.
        """
        gone: set[int] = set()
        for word in words:
            inside = word.rstrip("/") + "/"
            rows = {row for row, own in enumerate(self.names) if own == word or own.startswith(inside)}
            if not rows and Path(word).is_file():
                content = hashlib.sha256(read_file(Path(word))).hexdigest()
                rows = {row for row, own in enumerate(self.sha256) if own == content}
            if not rows:
                raise InputError(
                    f"expected a name, a folder or an image that is in the index, got {word!r}; nothing was removed;"
                    " --list shows the names"
                )
            gone |= rows
        removed = [self.names[row] for row in sorted(gone)]
        kept = [row for row in range(len(self.names)) if row not in gone]
        self.names, self.sha256 = [self.names[row] for row in kept], [self.sha256[row] for row in kept]
        self.descriptors_GD = self.descriptors_GD[kept]
        return removed


def check_lengths(descriptors_ND: np.ndarray) -> None:
    """Raise InputError unless every descriptor has length 1, which excludes NaN and a model that returns zeros."""
    lengths_N = np.sqrt(np.einsum("nd,nd->n", descriptors_ND, descriptors_ND))
    bad = np.flatnonzero(~(np.abs(lengths_N - 1) <= _UNIT))
    if bad.size:
        raise InputError(
            f"expected descriptors of length 1, got {lengths_N[bad[0]]:g} in row {bad[0]} ({bad.size} such rows)"
        )
