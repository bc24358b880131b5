"""Backbones of all kinds behind one interface: two stems, a layer-3 map, a layer-4 map, and the layers between the two.

The ResNet and EfficientNet-Lite have this interface themselves; adapters provide it for the networks of transformers.
Maps are B x C x H x W. The maps of these networks have positive and negative values, unlike a ResNet's after its ReLU;
GeM pools the positive part.
"""

import copy
from typing import Annotated, Any

import torch
from pydantic import Discriminator, Tag
from torch import nn

from tacaf.model.backbone import Backbone, BackboneConfig
from tacaf.model.efficientnet import EfficientNetLite, EfficientNetLiteConfig
from tacaf.model.library import STAGED, TOKENS, LibraryConfig, architecture, new_network, trained_network
from tacaf.model.norm import NormMode
from tacaf.model.pooling import map_BCHW


def _kind(value: Any) -> str:
    kind = value.get("kind", "resnet") if isinstance(value, dict) else getattr(value, "kind", None)
    return str(kind)


AnyBackboneConfig = Annotated[
    Annotated[BackboneConfig, Tag("resnet")]
    | Annotated[EfficientNetLiteConfig, Tag("efficientnet_lite")]
    | Annotated[LibraryConfig, Tag("transformers")],
    Discriminator(
        _kind, custom_error_type="kind", custom_error_message="expected kind: resnet, efficientnet_lite or transformers"
    ),
]


class _Stems(nn.Module):
    """A network's embedding of pixels, one per modality. The infrared one begins as a copy of the visible one."""

    def __init__(self, stem: nn.Module) -> None:
        super().__init__()
        self.visible, self.infrared = stem, copy.deepcopy(stem)
        # How many of the next images are visible. The adapters set it before each pass, because transformers' forward
        # calls its embeddings with only the images and has no argument through which to pass the number.
        self.rows = 0

    def forward(self, images_BCHW: torch.Tensor, **more: Any) -> Any:
        """The stem's output for all images, visible ones first: a tensor, or a tuple that begins with one."""
        outputs = []
        if self.rows > 0:
            outputs.append(self.visible(images_BCHW[: self.rows], **more))
        if self.rows < images_BCHW.shape[0]:
            outputs.append(self.infrared(images_BCHW[self.rows :], **more))
        if isinstance(outputs[0], torch.Tensor):
            return torch.cat(outputs)
        return (torch.cat([parts[0] for parts in outputs]), *outputs[0][1:])


class LibraryBackbone(nn.Module):
    """The base class of the adapters. `width`: channels of the layer-4 map."""

    def __init__(self, config: LibraryConfig, network: Any) -> None:
        super().__init__()
        self.config = config
        self.width = network.channels[-1]

    def load_weights(self) -> str:
        """Load the weights of `config.weights`, into both stems. Returns a line about what was loaded."""
        network, report = trained_network(self.config)
        self.load_state_dict(type(self)(self.config, network).state_dict())
        return report

    def layer4(self, layer3_BCHW: torch.Tensor) -> torch.Tensor:
        raise AssertionError("this backbone cannot continue from a layer-3 map; the configuration refuses it")


class Staged(LibraryBackbone):
    """Stages of convolutions (ConvNeXt): layer 3 is the map before the last stage, layer 4 the normalised one after."""

    def __init__(self, config: LibraryConfig, network: Any) -> None:
        super().__init__(config, network)
        self.stems = _Stems(network.embeddings)
        self.stages = network.encoder.stages
        self.norm = network.hidden_states_norms[network.out_features[-1]]

    def forward(self, images_BCHW: torch.Tensor, visible: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.stems.rows = visible
        features_BCHW = self.stems(images_BCHW)
        for stage in self.stages[:-1]:
            features_BCHW = stage(features_BCHW)
        return features_BCHW, self.layer4(features_BCHW)

    def layer4(self, layer3_BCHW: torch.Tensor) -> torch.Tensor:
        layer4_BCHW: torch.Tensor = self.norm(self.stages[-1](layer3_BCHW))
        return layer4_BCHW


class Tokens(LibraryBackbone):
    """Blocks over a grid of patches (DINOv2): the maps are one grid at two depths, layer 4 after the last norm.

    Class and register tokens take part in the images' own pass. A reconstruction has none: only its grid passes through
    the remaining blocks.
    """

    def __init__(self, config: LibraryConfig, network: Any) -> None:
        super().__init__(config, network)
        if network.embeddings.mask_token is not None:  # used only in pre-training
            network.embeddings.mask_token.requires_grad_(False)
        self.stems = _Stems(network.embeddings)
        self.blocks = network.encoder.layer
        self.norm = network.layernorm
        self.split = min(config.split or max(1, 3 * len(self.blocks) // 4), len(self.blocks) - 1)
        self.others = 1 + getattr(network.config, "num_register_tokens", 0)
        self.patch = network.config.patch_size

    def forward(self, images_BCHW: torch.Tensor, visible: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.stems.rows = visible
        rows, columns = images_BCHW.shape[2] // self.patch, images_BCHW.shape[3] // self.patch
        tokens_BTC = self.stems(images_BCHW)
        for block in self.blocks[: self.split]:
            tokens_BTC = block(tokens_BTC)
        layer3_BCHW = map_BCHW(tokens_BTC[:, self.others :], rows, columns)
        return layer3_BCHW, map_BCHW(self._rest(tokens_BTC)[:, self.others :], rows, columns)

    def layer4(self, layer3_BCHW: torch.Tensor) -> torch.Tensor:
        grid_BLC = layer3_BCHW.flatten(2).mT
        return map_BCHW(self._rest(grid_BLC), *layer3_BCHW.shape[2:])

    def _rest(self, tokens_BTC: torch.Tensor) -> torch.Tensor:
        for block in self.blocks[self.split :]:
            tokens_BTC = block(tokens_BTC)
        normed_BTC: torch.Tensor = self.norm(tokens_BTC)
        return normed_BTC


class Maps(LibraryBackbone):
    """Any network that returns its last two maps (Swin). Uses the package's forward, which cannot start at layer 3."""

    def __init__(self, config: LibraryConfig, network: Any) -> None:
        super().__init__(config, network)
        self.network = network
        owner = next(part for part in network.modules() if hasattr(part, "embeddings"))
        owner.embeddings = _Stems(owner.embeddings)
        self.place = next(name for name, part in network.named_modules() if part is owner.embeddings)
        if hasattr(owner, "layernorm"):  # no map contains its result
            owner.layernorm = nn.Identity()
        if hasattr(network, "hidden_states_norms"):  # layer 3 is the raw map, as in the other adapters
            network.hidden_states_norms[network.out_features[0]] = nn.Identity()

    def forward(self, images_BCHW: torch.Tensor, visible: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.network.get_submodule(self.place).rows = visible
        layer3_BCHW, layer4_BCHW = self.network(images_BCHW).feature_maps
        return layer3_BCHW, layer4_BCHW


AnyConfig = BackboneConfig | EfficientNetLiteConfig | LibraryConfig


def build_backbone(
    config: AnyConfig, norm: NormMode, fused: bool = False
) -> Backbone | EfficientNetLite | LibraryBackbone:
    """A backbone with random weights: `backbone(images, visible)` returns both maps; `.layer4(map)`, `.width`.

    `fused`: a ResNet's batch norms use the fused kernels (`norm.py`).
    """
    if isinstance(config, BackboneConfig):
        return Backbone(config, norm, fused)
    if isinstance(config, EfficientNetLiteConfig):
        return EfficientNetLite(config, norm)
    adapter = Staged if config.name in STAGED else Tokens if config.name in TOKENS else Maps
    return adapter(config, new_network(config))


def map_size(config: AnyConfig, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the layer-4 map for an image of this size."""
    if isinstance(config, BackboneConfig | EfficientNetLiteConfig):
        return config.map_size(height, width)
    with torch.device("meta"), torch.no_grad():
        images = torch.empty(1, 3, height, width)
        rows, columns = build_backbone(config, "local")(images, 1)[1].shape[2:]
    return rows, columns


def stride(config: AnyConfig) -> int:
    """Pixels from one row of the layer-4 map to the next."""
    if isinstance(config, BackboneConfig | EfficientNetLiteConfig):
        return 16 * config.last_stride
    values = architecture(config)
    return int(values.patch_size * 2 ** (len(getattr(values, "depths", "1")) - 1))
