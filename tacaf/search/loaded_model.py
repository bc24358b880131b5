"""A trained model as `Embedder` uses it: a function from images to descriptors, and the facts about the model."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from tacaf.images import GreyScale
from tacaf.model.file import ModelFacts, load_model
from tacaf.model.tacafnet import TacafNet
from tacaf.model.weights import CLASSIFIER
from tacaf.search.card import CARD, DescribedModel, EmbeddingFacts, Slice, checked_file, read_card
from tacaf.vocabulary import Embedding, InputError, Modality

# images float32 [b, 3, H, W], modality, embedding -> descriptors [b, d]
Run = Callable[[torch.Tensor, Modality, Embedding], np.ndarray]


class LoadedModel(NamedTuple):
    """A trained model from any kind of file."""

    run: Run
    height: int  # of its input, pixels
    width: int
    card: DescribedModel  # for an ONNX export an `ExportCard`
    sha256: str  # of the weights, because descriptors of two models cannot be compared
    scales: dict[Modality, GreyScale]  # of the training set: how grey of more than 8 bits becomes 8
    device: torch.device
    network: TacafNet | None  # None for ONNX


def load_safetensors(path: Path, device: str) -> LoadedModel:
    """The model in a model.safetensors. In an export's folder, the file must be the one that the card names."""
    if (path.parent / CARD).exists():
        checked_file(path.parent, path.name, read_card(path.parent))
    network, facts = load_model(path)
    try:
        network.to(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"expected a device of this machine, got {device!r}: {reason}; use cpu") from None

    @torch.no_grad()
    def run(images_BCHW: torch.Tensor, modality: Modality, embedding: Embedding) -> np.ndarray:
        return network.embed(images_BCHW.to(device), modality, embedding).cpu().numpy()

    known = {name: getattr(facts, name) for name in ModelFacts.model_fields}
    return LoadedModel(
        run=run,
        height=facts.height,
        width=facts.width,
        card=DescribedModel(**known, embedding=describe_embedding(network)),
        sha256=weights_sha256(network),
        scales=facts.scales,
        device=torch.device(device),
        network=network,
    )


def slices_of(facts: EmbeddingFacts, embedding: Embedding) -> list[tuple[int, int]]:
    """The slices of the full descriptor that make up an embedding; together they are normalised again."""
    return [
        bounds
        for name, bounds in facts.slices.items()
        if embedding == "full" or name == "global feature" or (embedding, name[:4]) == ("global_and_parts", "part")
    ]


def describe_embedding(model: TacafNet) -> EmbeddingFacts:
    """The parts of the full descriptor (method §5.6)."""
    whole, head = model.embedding_width(), model.embedding_width("global_only")
    slices: dict[Slice, tuple[int, int]] = {"global feature": (0, head)}
    if model.ipcam is not None:
        node = model.config.ipcam.node_width
        slices |= {"global node": (head, head + node), "part nodes, coarse to fine": (head + node, whole)}
    return EmbeddingFacts(width=whole, global_width=head, slices=slices, length=1, compare_by="cosine")


def weights_sha256(model: TacafNet) -> str:
    """The hash of everything that determines a descriptor, which is the same for a run and its exports."""
    # Neither CMAAM's mask in training nor the choice of kernels affects descriptors.
    config = model.config.portable().model_dump(mode="json", exclude={"cmaam": {"mask"}, "kernels": True})
    if config["ipcam"]["part_weight"] == 1:
        del config["ipcam"]["part_weight"]  # keeps the hash that the model had before there was this setting
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if CLASSIFIER not in name:
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
