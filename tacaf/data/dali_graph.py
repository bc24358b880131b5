"""The DALI graphs, on CPU or GPU. Only this file uses DALI, and its graphs decide nothing themselves.

Encoded bytes and every random parameter come from one external source, a pure function of the batch's number. So a
graph has no random operator, and a resumed run only starts counting at another number. V0 and V1 are two crops of one
decoded image. Erasing and the channel matrix follow in `pixels.py`.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, types

from tacaf.images import MEAN, STD
from tacaf.vocabulary import Branch, Modality

Node: TypeAlias = Any  # DALI's data node
# From the number of a graph's batch, counted from 0, to its inputs, each a list of one array per image.
Source: TypeAlias = Callable[[int], tuple[list[np.ndarray], ...]]
PARAMETERS = 2  # external inputs per branch: crop, mirror


def training_graph(
    source: Source,
    branches: Sequence[Branch],
    height: int,
    width: int,
    *,
    images_per_modality: int,
    threads: int,
    device_id: int | None,
    prefetch: int,
) -> Pipeline:
    """The graph of the training. Inputs: visible image files, infrared image files, then each branch's crop and mirror.

    Outputs: each branch's images, float32 [b, 3, H, W].
    """
    graph = Pipeline(images_per_modality, threads, device_id, prefetch_queue_depth=prefetch)
    with graph:
        inputs = _inputs(source, len(Modality) + PARAMETERS * len(branches))
        decoded = {modality: decode(inputs[modality.code], height, width, device_id) for modality in Modality}
        outputs = []
        for place, branch in enumerate(branches):
            first = len(Modality) + place * PARAMETERS
            outputs.append(crop(decoded[branch.modality], height, width, *inputs[first : first + PARAMETERS]))
        graph.set_outputs(*outputs)
    graph.build()
    return graph


def evaluation_graph(
    source: Source, height: int, width: int, *, batch_size: int, threads: int, device_id: int | None
) -> Pipeline:
    """The graph of the evaluation. Input: image files. Output: the resized, normalised images, float32 [b, 3, H, W]."""
    graph = Pipeline(batch_size, threads, device_id)
    with graph:
        graph.set_outputs(_normalise(decode(_inputs(source, 1)[0], height, width, device_id)))
    graph.build()
    return graph


def refused(encoded: Sequence[np.ndarray], device_id: int | None) -> list[int]:
    """The positions of those image files, uint8 [bytes] each, that DALI's decoder refuses.

    Each file is decoded alone, because DALI fails for a whole batch, and after a failure a new graph is built, because
    a graph does not recover. Images are resized to 8 x 8 pixels, because only the success of decoding matters.
    """
    failed: list[int] = []
    first = 0
    while first < len(encoded):
        graph = evaluation_graph(_one_by_one(encoded[first:]), 8, 8, batch_size=1, threads=1, device_id=device_id)
        place = first
        try:
            while place < len(encoded):
                graph.run()
                place += 1
        except RuntimeError:
            failed.append(place)
        first = place + 1
    return failed


def next_outputs(graph: Pipeline, device_id: int | None) -> list[torch.Tensor]:
    """The outputs for the next batch, in DALI's memory, which the batch after it reuses."""
    # DALI gets the stream that will read them, so that it does not reuse their memory too early.
    stream = None if device_id is None else torch.cuda.current_stream(device_id)
    return [torch.from_dlpack(output.as_tensor()) for output in graph.run(stream)]


def decode(encoded: Node, height: int, width: int, device_id: int | None) -> Node:
    """Decode and resize to RGB uint8 HWC; bilinear, no antialiasing."""
    image = fn.decoders.image(encoded, device="cpu" if device_id is None else "mixed", output_type=types.RGB)
    return fn.resize(image, resize_y=height, resize_x=width, interp_type=types.INTERP_LINEAR, antialias=False)


def crop(image: Node, height: int, width: int, corner: Node, mirror: Node) -> Node:
    """Crop from the image padded with raw 0, mirror, normalise; float32 CHW."""
    # As a positional argument, the shape would become a GPU node whose values DALI copies back at every run; as a
    # keyword argument it stays on the CPU, where the anchors are.
    image = fn.slice(image, start=corner, shape=[height, width], axes=[0, 1], out_of_bounds_policy="pad")
    return _normalise(image, mirror)


def _one_by_one(encoded: Sequence[np.ndarray]) -> Source:
    return lambda number: ([encoded[min(number, len(encoded) - 1)]],)  # DALI reads ahead, even past the end


def _normalise(image: Node, mirror: Node | int = 0) -> Node:
    mean, std = (255 * MEAN).tolist(), (255 * STD).tolist()
    return fn.crop_mirror_normalize(image, mirror=mirror, mean=mean, std=std, dtype=types.FLOAT, output_layout="CHW")


def _inputs(source: Source, count: int) -> Sequence[Node]:
    # Never parallel: the training would hang if one of DALI's worker processes was killed, and they may outlive it.
    return fn.external_source(
        source=lambda info: source(info.iteration), num_outputs=count, batch=True, batch_info=True, parallel=False
    )
