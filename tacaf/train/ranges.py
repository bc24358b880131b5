"""The classifiers' ranges in training (`model.classifier.sharding: identities`): their optimiser and their checkpoints.

DeepSpeed does not know of them, so nothing is broadcast, averaged or partitioned that differs between ranks. Its own
way for such parameters, expert parallelism, is made for layers of equally large experts, and ranges differ by one.
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
        weight = classifier.weight
        state = self.optimizer.state[weight]
        state.clear()
        for key in files[0].keys_of(name):
            value = self._cut(f"{name}/{key}", classifier, files)
            if key == WEIGHT:
                with torch.no_grad():
                    weight.copy_(value)
            else:
                state[key] = value.to(weight.device)

    def _cut(self, name: str, classifier: RangeClassifier, files: list["_File"]) -> torch.Tensor:
        """The range of one tensor; a number that stands for all identities, such as AdamW's count, as it is."""
        own, wanted = classifier.own, list(classifier.weight.shape)
        fitting = [file for file in files if file.start < own.stop and file.stop > own.start]
        shapes = [file.shape_of(name) for file in fitting]
        if not any(shapes):
            return fitting[0].content.read([name])[name]
        for file, shape in zip(fitting, shapes, strict=True):
            expected = [*wanted[:-2], file.stop - file.start, wanted[-1]]
            if list(shape) != expected:
                raise InputError(
                    f"{shown(file.content.path)}: expected {name} of the form {expected}, got {list(shape)}; {CURE}"
                )
        return torch.cat([file.cut(name, own.start, own.stop) for file in fitting], dim=-2)


def check_ranges(config: Config, identities: int, ranks: int) -> None:
    """InputError if there are more ranks than identities, or if the share of negatives is smaller than a batch."""
    if not config.model.split:
        return
    if identities < ranks:
        raise InputError(
            f"model.classifier.sharding: expected at least {ranks} identities for {ranks} ranks, got {identities}; set"
            " model.classifier.sharding: none"
        )
    share, in_batch = config.model.classifier.negatives, config.data.plan.identities_per_batch
    wanted = round(share * identities)
    if config.model.classifier.sampled and wanted < in_batch:
        raise InputError(
            f"model.classifier.negatives: expected a share of at least the {in_batch} identities of a batch, got"
            f" {share:g} of {identities}, which is {wanted}; set a larger share, or 1 for all"
        )


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

    def keys_of(self, name: str) -> list[str]:
        """What the file has of a classifier: "weight", and what the optimiser keeps of it. InputError without it."""
        keys = [key for whole, _, key in (one.rpartition("/") for one in self.content.tensors) if whole == name]
        if WEIGHT not in keys:
            raise InputError(f"{shown(self.content.path)}: expected the classifier {name}, found none; {CURE}")
        return keys

    def shape_of(self, name: str) -> tuple[int, ...]:
        if name not in self.content.tensors:
            raise InputError(f"{shown(self.content.path)}: expected {name}, found none; {CURE}")
        return self.content.tensors[name].shape

    def cut(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Of ... x I x C what the file has of the identities `start` to `stop - 1`."""
        return self.content.read_part(name, -2, max(start, self.start) - self.start, min(stop, self.stop) - self.start)


def _name(rank: int, ranks: int) -> str:
    return f"classifiers-{rank:05d}-of-{ranks:05d}.safetensors"
