"""Models of which only the shapes exist, to count with: nothing is computed and no memory is allocated."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tacaf.model.tacafnet import ModelConfig, TacafNet


def shapes_only() -> FakeTensorMode:
    """A mode in which every operation propagates shapes alone. Each count needs its own."""
    return FakeTensorMode(allow_non_fake_inputs=True)  # `shape_model` passes it tensors of the meta device


def shape_model(config: ModelConfig, identities: int, shapes: FakeTensorMode) -> TacafNet:
    """A model in the mode `shapes`, on the CPU.

    It is built on the meta device first, because networks of transformers read values and copy modules while they are
    built; the mode refuses the former, and the copies would not belong to it.
    """
    with torch.device("meta"):
        model = TacafNet(config, identities)
    with shapes:
        return model.to_empty(device="cpu")
