"""model.safetensors: a trained TACAFNet's file, written and read with what one must know to use it, in its metadata."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field, model_validator
from typing_extensions import TypedDict

from tacaf.documents import Count, Document, Sha256
from tacaf.files import shown
from tacaf.images import GreyScale
from tacaf.model.library import LibraryConfig
from tacaf.model.tacafnet import ModelConfig, TacafNet
from tacaf.model.weights import CLASSIFIER, embedder, fits
from tacaf.tensors import TensorFile, save_sealed
from tacaf.vocabulary import Embedding, InputError, Modality

FORMAT = "tacaf-model"
FORMAT_VERSION = 3  # 2: classifiers in pieces; 3: with a seal
CURE = "copy it again, or export the run again"
MOST_WIDTH = 2**20  # of any one number in a card's model; its tensors are bounded by those of its file
MOST_LAYERS = 512
MOST_PIXELS_A_SIDE = 4096

Side = Annotated[int, Field(ge=1, le=MOST_PIXELS_A_SIDE, description="pixels")]
Text = Annotated[str, Field(max_length=4096)]


class TrainedOn(TypedDict):
    """The identities a model has seen."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    set: Text
    sha256: Sha256  # of the set's index
    split: Text


class ModelFacts(Document):
    """What a model file and the card of an export say of the model alike."""

    model: ModelConfig
    identities: Annotated[int, Field(ge=1, lt=2**31)]
    height: Side
    width: Side
    trained_on: TrainedOn
    scales: dict[Modality, GreyScale] = Field(
        {}, description="of the training set: how grey of more than 8 bits becomes 8"
    )
    seed: Count
    chosen: Text = Field(description='"last epoch" or "validation, epoch e"')
    usual_embedding: Embedding = Field("full", description="the one the run was scored with; older files do not say")

    @model_validator(mode="after")
    def _bounded(self) -> "ModelFacts":
        """A card can make nobody build a giant, fetch anything, or give the network images that it cannot take."""
        backbone = self.model.backbone
        if isinstance(backbone, LibraryConfig) and (backbone.weights is not None or backbone.download):
            raise ValueError("model.backbone.weights: expected none in the card of a model file, got some")
        _check_sizes("model", self.model.model_dump(mode="json", exclude={"chunk"}))
        return self


class ModelCard(ModelFacts):
    """What stands in the metadata of a model file."""

    format: Literal["tacaf-model"]
    format_version: Literal[2, 3]
    versions: dict[str, str | None] = Field(default_factory=dict)
    commit: str | None = None
    seal: Sha256 | None = Field(
        None, description="sha256 of the file with 64 zeros in place of the seal; from version 3"
    )


def write_model(path: Path, state: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
    """Write a model file, whole or not at all. facts: the fields of `ModelCard` but for format, version and seal."""
    save_sealed(path, state, {"format": FORMAT, "format_version": FORMAT_VERSION, **facts})


def load_model(path: Path) -> tuple[TacafNet, ModelCard]:
    """The model of a file written by `write_model`, for `embed`, and its card. The classifiers stay in the file.

    InputError for a file that is none, has changed, holds NaN, or has other tensors than the model it describes.
    """
    file, card = open_model(path)
    state = file.read(name for name in file.tensors if CLASSIFIER not in name)
    return embedder(card.model, state, shown(path)), card


def open_model(path: Path) -> tuple[TensorFile, ModelCard]:
    """A model file with its header, its card and its hash checked; no tensor is loaded."""
    try:
        file = TensorFile.open(path)
    except InputError as error:
        raise InputError(
            f"expected a model file at {shown(path)}, got: {error}; a finished run has model.safetensors"
        ) from None
    card = file.document(ModelCard, CURE)
    try:
        shapes = {name: facts.shape for name, facts in file.tensors.items() if CLASSIFIER not in name}
        fits(card.model, shapes)
        card.model.check_input(card.height, card.width)
    except InputError as error:
        raise InputError(f"{shown(path)}: {error}") from None
    if card.format_version > 2 or card.seal is not None:
        file.check_seal(CURE)
    return file, card


def _check_sizes(where: str, value: Any) -> None:
    """ValueError for a number that no network of ours or of transformers has."""
    if isinstance(value, dict):
        for name, below in value.items():
            _check_sizes(f"{where}.{name}", below)
    elif isinstance(value, list):
        for below in value:
            _check_sizes(where, below)
        value = sum(one for one in value if isinstance(one, int))
    if isinstance(value, int | float):
        layers = any(word in where.rpartition(".")[2] for word in ("layers", "blocks", "depths", "rounds", "levels"))
        most = MOST_LAYERS if layers else MOST_WIDTH
        if not abs(value) <= most:
            raise ValueError(f"{where}: expected at most {most}, got {value}")
