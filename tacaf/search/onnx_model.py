"""An ONNX export as an `Embedder` uses it: a graph for each modality, run by onnxruntime on the CPU."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from tacaf.extras import missing
from tacaf.files import shown
from tacaf.search.card import ExportCard, checked_file, read_card
from tacaf.search.loaded_model import LoadedModel, slices_of
from tacaf.vocabulary import Embedding, InputError, Modality

ONNX_FILES = {modality: f"{modality}.onnx" for modality in Modality}


def load_onnx(folder: Path) -> LoadedModel:
    """The model of an export's folder. InputError without onnxruntime, and for a graph that does not fit the card."""
    try:
        import onnxruntime
    except ImportError:
        raise missing("onnxruntime", "an ONNX model") from None
    card = read_card(folder)
    sessions = {}
    for modality, name in ONNX_FILES.items():
        path = checked_file(folder, name, card)
        try:
            sessions[modality] = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises kinds of its own, all of them bare Exceptions
            raise InputError(
                f"{shown(path)}: expected an ONNX graph, got: {_line(error)}; export the run again"
            ) from None
        _check_graph(sessions[modality], path, card)

    def run(images_BCHW: torch.Tensor, modality: Modality, embedding: Embedding) -> np.ndarray:
        (found_BD,) = sessions[modality].run(["embedding"], {"images": images_BCHW.numpy()})
        if embedding == "full":
            return found_BD
        places = slices_of(card.embedding, embedding)
        kept_BD = np.concatenate([found_BD[:, start:stop] for start, stop in places], axis=1)
        return kept_BD / np.linalg.norm(kept_BD, axis=1, keepdims=True)

    return LoadedModel(
        run=run,
        height=card.height,
        width=card.width,
        card=card,
        sha256=card.model_sha256,
        scales=card.scales,
        device=torch.device("cpu"),
        network=None,
    )


def _check_graph(session: Any, path: Path, card: ExportCard) -> None:
    """InputError unless the graph takes and gives what the card says."""
    given, found = (
        [(one.name, one.shape[1:]) for one in some] for some in (session.get_inputs(), session.get_outputs())
    )
    wanted = [("images", [3, card.height, card.width])], [("embedding", [card.embedding.width])]
    if (given, found) != wanted:
        raise InputError(
            f"{shown(path)}: expected {wanted[0]} to {wanted[1]}, got {given} to {found}; export the run again"
        )


def _line(error: Exception) -> str:
    return shown(" ".join(str(error).split()))[:200]
