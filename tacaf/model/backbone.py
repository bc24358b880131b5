"""The two-stem ResNet: one stem per modality, layers 1-4 shared, last stride 1 (AGW, LbA).

B images, C channels, H x W. Parameters have the usual ResNet names, so that ImageNet files can be loaded
(`weights.py`).
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from tacaf.model.norm import BatchNorm2d, NormMode
from tacaf.settings import Settings

Blocks = Annotated[int, Field(ge=1, le=100)]
NewNorm = Callable[[int], BatchNorm2d]  # from the number of channels


class BackboneConfig(Settings):
    """The shape of the backbone. The defaults are those of ResNet-50 with last stride 1."""

    kind: Literal["resnet"] = Field(
        "resnet", description="resnet; the alternatives are efficientnet_lite and transformers."
    )
    width: int = Field(
        64, ge=4, le=4096, description="Channels of the stem; stage i has 2**i times as many inside its blocks."
    )
    blocks: tuple[Blocks, Blocks, Blocks, Blocks] = Field(
        (3, 4, 6, 3), description="Residual blocks in each of the four stages."
    )
    last_stride: Literal[1, 2] = Field(1, description="Stride of stage 4; 1 gives a finer map (AGW, LbA).")
    block: Literal["bottleneck", "basic"] = Field(
        "bottleneck", description="bottleneck: 1x1, 3x3, 1x1 with expansion 4 (ResNet-50); basic: 3x3, 3x3 (ResNet-18)."
    )

    @property
    def expansion(self) -> int:
        return 4 if self.block == "bottleneck" else 1

    def stage_width(self, stage: int) -> int:
        """Output channels of stage 1..4."""
        width: int = self.width * 2 ** (stage - 1) * self.expansion
        return width

    def map_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the stage-4 map for an image of this size: every stride-2 step rounds up."""
        stride = 16 * self.last_stride
        return -(-height // stride), -(-width // stride)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


class Stem(nn.Module):
    """conv1, bn1, ReLU, max-pool: B x 3 x H x W to B x width x H/4 x W/4. One per modality."""

    def __init__(self, width: int, norm: NewNorm) -> None:
        super().__init__()
        self.conv1 = _conv(3, width, 7, 2)
        self.bn1 = norm(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        features_BCHW: torch.Tensor = self.maxpool(self.bn1(self.conv1(images_BCHW), relu=True))
        return features_BCHW


class _Block(nn.Module):
    """The base class of both residual blocks: the shortcut, with a projection if the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: NewNorm) -> None:
        super().__init__()
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(_conv(inputs, outputs, 1, stride), norm(outputs))

    def shortcut(self, features_BCHW: torch.Tensor) -> torch.Tensor:
        return features_BCHW if self.downsample is None else self.downsample(features_BCHW)


class Bottleneck(_Block):
    """1x1, 3x3 (with the stride, as in torchvision), 1x1 with expansion 4."""

    def __init__(self, inputs: int, width: int, stride: int, norm: NewNorm) -> None:
        super().__init__(inputs, 4 * width, stride, norm)
        self.conv1 = _conv(inputs, width, 1)
        self.bn1 = norm(width)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = norm(width)
        self.conv3 = _conv(width, 4 * width, 1)
        self.bn3 = norm(4 * width)

    def forward(self, features_BCHW: torch.Tensor) -> torch.Tensor:
        shortcut = self.shortcut(features_BCHW)
        inner = self.bn1(self.conv1(features_BCHW), relu=True)
        inner = self.bn2(self.conv2(inner), relu=True)
        outer: torch.Tensor = self.bn3(self.conv3(inner), shortcut, relu=True)
        return outer


class BasicBlock(_Block):
    """3x3 (with the stride), 3x3."""

    def __init__(self, inputs: int, width: int, stride: int, norm: NewNorm) -> None:
        super().__init__(inputs, width, stride, norm)
        self.conv1 = _conv(inputs, width, 3, stride)
        self.bn1 = norm(width)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = norm(width)

    def forward(self, features_BCHW: torch.Tensor) -> torch.Tensor:
        shortcut = self.shortcut(features_BCHW)
        inner = self.bn1(self.conv1(features_BCHW), relu=True)
        outer: torch.Tensor = self.bn2(self.conv2(inner), shortcut, relu=True)
        return outer


class TwoStems(nn.Module):
    """The forward pass through a stem per modality and four shared layers, which subclasses build."""

    visible_stem: nn.Module
    infrared_stem: nn.Module
    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module

    def forward(self, images_BCHW: torch.Tensor, visible: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The maps after layer 3 and layer 4. The first `visible` images use the visible stem, the others the infrared.

        A batch of one modality (visible = 0 or B) runs only one stem.
        """
        stems = []
        if visible > 0:
            stems.append(self.visible_stem(images_BCHW[:visible]))
        if visible < images_BCHW.shape[0]:
            stems.append(self.infrared_stem(images_BCHW[visible:]))
        layer3_BCHW = self.layer3(self.layer2(self.layer1(torch.cat(stems))))
        return layer3_BCHW, self.layer4(layer3_BCHW)


class Backbone(TwoStems):
    """Two stems and four shared stages, with random Kaiming weights until a file is loaded."""

    def __init__(self, config: BackboneConfig, mode: NormMode, fused: bool = False) -> None:
        super().__init__()
        norm = partial(BatchNorm2d, mode=mode, fused=fused)
        self.config = config
        self.width = config.stage_width(4)
        self.visible_stem = Stem(config.width, norm)
        self.infrared_stem = Stem(config.width, norm)
        self.layer1 = self._stage(1, 1, norm)
        self.layer2 = self._stage(2, 2, norm)
        self.layer3 = self._stage(3, 2, norm)
        self.layer4 = self._stage(4, config.last_stride, norm)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _stage(self, stage: int, stride: int, norm: NewNorm) -> nn.Sequential:
        block = Bottleneck if self.config.block == "bottleneck" else BasicBlock
        inputs = self.config.width if stage == 1 else self.config.stage_width(stage - 1)
        width, outputs = self.config.width * 2 ** (stage - 1), self.config.stage_width(stage)
        blocks = [block(inputs, width, stride, norm)]
        blocks += [block(outputs, width, 1, norm) for _ in range(self.config.blocks[stage - 1] - 1)]
        return nn.Sequential(*blocks)
