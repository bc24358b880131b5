"""The classifiers' ranges in training (`model.classifier.sharding: identities`): their optimiser and their checkpoints.

DeepSpeed does not know of them, so nothing is broadcast, averaged or partitioned that differs between ranks. Its own
way for such parameters, expert parallelism, wants equally large experts within its MoE layers and saves them in files
that no other number of ranks can read.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field

from tacaf import distributed
from tacaf.documents import Document, Sha256
from tacaf.files import shown
from tacaf.model.ranges import RangeClassifier
from tacaf.optim import build_optimizer
from tacaf.tensors import TensorFile, save_sealed
from tacaf.train.config import Config
from tacaf.vocabulary import InputError

WEIGHT = "weight"
CURE = "the checkpoint cannot be used; resume from another one"

Identities = Annotated[int, Field(ge=0, lt=2**40)]


class RangeFacts(Document):
    """The metadata of one rank's file in a checkpoint."""

    format: Literal["tacaf-classifier-range"]
    format_version: Literal[1]
    start: Identities
    stop: Identities
    identities: Identities
    seal: Sha256


@dataclass(frozen=True)
class Ranges:
    """This rank's range of every classifier, by the classifier's name, and the optimiser that updates them."""

    classifiers: Mapping[str, RangeClassifier]
    optimizer: torch.optim.Optimizer

    @classmethod
    def of_model(cls, config: Config, model: torch.nn.Module, images_per_update_and_modality: int) -> "Ranges | None":
        """Those of a model that is where it will be trained; None if its classifiers are whole."""
        found = {name: module for name, module in model.named_modules() if isinstance(module, RangeClassifier)}
        if not found:
            return None
        weights = [classifier.weight for classifier in found.values()]
        return cls(found, build_optimizer(config.optim, (), weights, images_per_update_and_modality))

    def square_norm(self) -> torch.Tensor:
        """The sum of the squares of all ranks' gradients, float32; the same on every rank, each of which must call it.

        The host does not wait for it.
        """
        gradients = [classifier.weight.grad for classifier in self.classifiers.values()]
        own = torch.nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])
        return distributed.sum_over_ranks(own.square())

    def bytes_of_checkpoint(self) -> int:
        """Of all ranks' files, about: weights and what the optimiser keeps for each."""
        numbers = sum(
            one.weight.numel() * one.own.identities // max(1, one.own.stop - one.own.start)
            for one in self.classifiers.values()
        )
        return 4 * numbers * (2 if isinstance(self.optimizer, torch.optim.SGD) else 3)

    def save(self, folder: Path) -> None:
        """Write this rank's file into the folder of a checkpoint. InputError or OSError if it cannot be written."""
        tensors = {
            f"{name}/{key}": value
            for name, classifier in self.classifiers.items()
            for key, value in self._values(classifier)
        }
        own = next(iter(self.classifiers.values())).own
        facts = {"format": "tacaf-classifier-range", "format_version": 1, **own._asdict()}
        save_sealed(folder / _name(distributed.rank(), distributed.world_size()), tensors, facts)

    def load(self, folder: Path, ranks: int) -> None:
        """Take this rank's range out of the files that so many ranks have written.

        InputError if one of them is missing, or if they are not the ranges of these classifiers.
        """
        files = [_File.open(folder / _name(rank, ranks)) for rank in range(ranks)]
        own = next(iter(self.classifiers.values())).own
        reached = 0
        for file in files:
            if (file.start, file.identities) != (reached, own.identities):
                raise InputError(
                    f"{shown(file.content.path)}: expected the identities from {reached} on of {own.identities}, got"
                    f" those from {file.start} on of {file.identities}; {CURE}"
                )
            reached = file.stop
        if reached != own.identities:
            raise InputError(f"{shown(folder)}: expected ranges up to {own.identities}, got {reached}; {CURE}")
        for name, classifier in self.classifiers.items():
            self._load(name, classifier, files)

    def _values(self, classifier: RangeClassifier) -> Iterator[tuple[str, torch.Tensor]]:
        yield WEIGHT, classifier.weight
        for key, value in self.optimizer.state.get(classifier.weight, {}).items():
            if torch.is_tensor(value):  # momentum is None before the first update
                yield key, value

    def _load(self, name: str, classifier: RangeClassifier, files: list["_File"]) -> None:
        weight, own = classifier.weight, classifier.own
        fitting = [file for file in files if file.start < own.stop and file.stop > own.start]
        keys = {key for key in fitting[0].content.tensors if key.rpartition("/")[0] == name}
        if any(
            f"{name}/{WEIGHT}" not in file.content.tensors or not keys <= file.content.tensors.keys() for file in files
        ):
            raise InputError(f"{shown(files[0].content.path)}: expected the classifier {name}, found none; {CURE}")
        for key in keys:
            shape = fitting[0].content.tensors[key].shape
            if not shape:  # AdamW's count of updates
                value = fitting[0].content.read([key])[key]
            else:
                value = torch.cat([file.cut(key, own.start, own.stop) for file in fitting], dim=-2)
                if value.shape != weight.shape:
                    raise InputError(
                        f"{shown(folder_of(fitting))}: expected {key} of the form {list(weight.shape)}, got"
                        f" {list(value.shape)}; {CURE}"
                    )
            kind = key.rpartition("/")[2]
            if kind == WEIGHT:
                with torch.no_grad():
                    weight.copy_(value)
            else:
                self.optimizer.state[weight][kind] = value.to(weight.device)


def check_ranges(config: Config, identities: int, ranks: int) -> None:
    """InputError if the classifiers are to be split over more ranks than there are identities."""
    if config.model.split and identities < ranks:
        raise InputError(
            f"model.classifier.sharding: expected at least {ranks} identities for {ranks} ranks, got {identities}; set"
            " model.classifier.sharding: none"
        )


def folder_of(files: list["_File"]) -> Path:
    return files[0].content.path.parent


@dataclass(frozen=True)
class _File:
    """A rank's file, with its header checked; no tensor is loaded. The manifest vouches for its bytes."""

    content: TensorFile
    start: int
    stop: int
    identities: int

    @classmethod
    def open(cls, path: Path) -> "_File":
        content = TensorFile.open(path)
        facts = content.document(RangeFacts, CURE)
        return cls(content, facts.start, facts.stop, facts.identities)

    def cut(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Of ... x I x C what the file has of the identities `start` to `stop - 1`."""
        return self.content.read_part(name, -2, max(start, self.start) - self.start, min(stop, self.stop) - self.start)


def _name(rank: int, ranks: int) -> str:
    return f"classifiers-{rank:05d}-of-{ranks:05d}.safetensors"
