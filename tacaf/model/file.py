"""Reading and writing model files: `model.safetensors` contains a trained TACAFNet, and a card as its metadata.

The card has everything that is needed to use the model.
"""

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
from tacaf.model.weights import CLASSIFIER, fits, inference_model
from tacaf.tensors import TensorFile, save_sealed
from tacaf.vocabulary import Embedding, InputError, Modality

MODEL = "model.safetensors"  # its name in the folder of a run or of an export
FORMAT, FORMAT_VERSION = "tacaf-model", 3
CURE = "copy it again, or export the run again"
MOST_WIDTH = 2**20  # of any number in a card's model; its tensors are bounded by those of its file
MOST_LAYERS = 512
MOST_PIXELS_A_SIDE = 4096

Side = Annotated[int, Field(ge=1, le=MOST_PIXELS_A_SIDE, description="pixels")]
Text = Annotated[str, Field(max_length=4096)]


class TrainedOn(TypedDict):
    """The identities that a model was trained on."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    set: Text
    sha256: Sha256  # of the set's index
    split: Text


class ModelFacts(Document):
    """The facts about a model that both its file and the card of an export contain."""

    model: ModelConfig
    identities: Annotated[int, Field(ge=1, lt=2**31)]
    height: Side
    width: Side
    trained_on: TrainedOn
    scales: dict[Modality, GreyScale] = Field(description="of the training set: how grey of more than 8 bits becomes 8")
    seed: Count
    chosen: Text = Field(description='"last epoch" or "validation, epoch e"')
    usual_embedding: Embedding = Field(description="the one that the run was scored with")

    @model_validator(mode="after")
    def _bounded(self) -> "ModelFacts":
        """Refuse cards that would make the reader build a huge network or fetch weights."""
        backbone = self.model.backbone
        download = isinstance(backbone, LibraryConfig) and backbone.download
        if download or getattr(backbone, "weights", None) is not None:
            raise ValueError("model.backbone.weights: expected null in the card of a model file, got a value")
        _check_sizes("model", self.model.model_dump(mode="json", exclude={"chunk"}))
        return self


class ModelCard(ModelFacts):
    """The metadata of a model file."""

    format: Literal["tacaf-model"]
    format_version: Literal[3]
    versions: dict[str, str | None] = Field(description="of the packages that made it")
    commit: str | None = Field(description="of the code that made it")
    seal: Sha256 = Field(description="sha256 of the file with 64 zeros in place of the seal")


def write_model(path: Path, state: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
    """Write a model file atomically. facts: the fields of `ModelCard` except format, version and seal.

    Raises InputError if the file cannot be written.
    """
    save_sealed(path, state, {"format": FORMAT, "format_version": FORMAT_VERSION, **facts})


def load_model(path: Path) -> tuple[TacafNet, ModelCard]:
    """The model in a file of `write_model`, ready for `embed`, and its card. The classifiers are not loaded.

    Raises InputError if this is not a model file, if it has changed, if a weight is not finite, or if the tensors are
    not those of the model that its card describes.
    """
    file, card = open_model(path)
    state = file.read(name for name in file.tensors if CLASSIFIER not in name)
    return inference_model(card.model, state, shown(path)), card


def open_model(path: Path) -> tuple[TensorFile, ModelCard]:
    """A model file and its card, after checking header, card and hash; no tensor is loaded. Raises InputError."""
    try:
        file = TensorFile.open(path)
    except InputError as error:
        raise InputError(f"cannot read the model file: {error}; a finished run has {MODEL}") from None
    card = file.document(ModelCard, CURE)
    try:
        shapes = {name: facts.shape for name, facts in file.tensors.items() if CLASSIFIER not in name}
        fits(card.model, shapes)
        card.model.check_input(card.height, card.width)
    except InputError as error:
        raise InputError(f"{shown(path)}: {error}") from None
    file.check_seal(CURE)
    return file, card


def _check_sizes(where: str, value: Any) -> None:
    """Raise ValueError for a number that is larger than in any network of ours or of transformers."""
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
