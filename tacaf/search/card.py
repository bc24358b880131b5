"""card.json of an export: the facts about the model, how to prepare images, its scores, and the hashes of its files."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tacaf.documents import NO_SEAL, Document, SafeName, Sha256, check_seal, parse, seal
from tacaf.evaluation.results import Measures, Result
from tacaf.files import read_bytes, sha256_of, shown, write_whole
from tacaf.model.file import ModelFacts
from tacaf.vocabulary import InputError

CARD = "card.json"
CARD_FORMAT, CARD_VERSION = "tacaf-card", 2
MOST_CARD_BYTES = 2**24
CURE = "export the run again"

Width = Annotated[int, Field(ge=1, le=2**24)]
Place = Annotated[int, Field(ge=0, le=2**24)]
Slice = Literal["global feature", "global node", "part nodes, coarse to fine"]
Text = Annotated[str, Field(max_length=4096)]


class EmbeddingFacts(Document):
    """The parts of the full descriptor by name, each as [start, stop), consecutive from 0."""

    width: Width
    global_width: Width
    slices: dict[Slice, tuple[Place, Place]] = Field(min_length=1)
    length: Literal[1]
    compare_by: Literal["cosine"]

    @model_validator(mode="after")
    def _covers(self) -> "EmbeddingFacts":
        end = 0
        for start, stop in self.slices.values():
            if start != end or stop <= start:
                raise ValueError(f"slices: expected consecutive slices from 0 on, got [{start}, {stop}] after {end}")
            end = stop
        if end != self.width or self.slices.get("global feature") != (0, self.global_width):
            raise ValueError(f"slices: expected them to begin with the global feature and fill the width {self.width}")
        return self


class DescribedModel(ModelFacts):
    """What is known about every trained model: the facts in its file, and the parts of its descriptors."""

    embedding: EmbeddingFacts


class ExportedResult(Result):
    """A result as a card contains it: without its trials."""

    trials: list[Measures] = Field(default_factory=list, max_length=0)


class ExportCard(DescribedModel):
    """The card of an export. Fields that only people read, such as preprocessing, are free JSON."""

    format: Literal["tacaf-card"]
    format_version: Literal[2]
    model_sha256: Sha256 = Field(description="of everything that determines a descriptor")
    preprocessing: dict[str, Any]
    results: list[ExportedResult]
    exported_with: dict[str, str | None]
    licence: Text
    intended_use: Text
    not_for: Text
    onnx: dict[str, Any] | None = None
    files: dict[SafeName, Sha256] = Field(min_length=1, description="name -> sha256")
    check: dict[str, Any] | None = Field(None, description="how much the export's descriptors differ from the run's")
    seal: Sha256 = Field(description="sha256 of this file with 64 zeros in place of the seal")


def read_card(folder: Path) -> ExportCard:
    """The card of the export in `folder`. Raises InputError if it is missing, not valid, or has changed."""
    path = folder / CARD
    if not path.is_file():
        raise InputError(f"the card of the export, {shown(path)}, does not exist; {CURE}")
    data = read_bytes(path, MOST_CARD_BYTES)
    card = parse(data, ExportCard, shown(path), MOST_CARD_BYTES, CURE)
    check_seal(data, shown(path), CURE)
    return card


def write_card(folder: Path, values: dict[str, Any]) -> None:
    """Write the fields of an `ExportCard`, sealed."""
    values = {**values, "format": CARD_FORMAT, "format_version": CARD_VERSION, "seal": NO_SEAL}
    text = json.dumps(values, indent=1, allow_nan=False) + "\n"
    write_whole(folder / CARD, seal(text))


def checked_file(folder: Path, name: str, card: ExportCard) -> Path:
    """The path of one of the export's files. Raises InputError if it is missing or does not have the card's hash."""
    path = folder / name
    if name not in card.files or not path.is_file() or sha256_of(path) != card.files[name]:
        raise InputError(f"{shown(path)} is missing or is not the file whose hash is in {CARD}; {CURE}")
    return path
