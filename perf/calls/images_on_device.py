"""A training set decoded once into one tensor on the GPU, from which batches are made there, without DALI.

The plan, the drawn parameters and the last operations are the project's own; padding, crop, flip and normalisation are
those of `augment.reference`. This is only for measuring, because a set must fit into the GPU's memory.
B images of a batch, N of the set, H x W pixels.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F

from tacaf.data.augment import Parameters, draw_parameters
from tacaf.data.index import ShardIndex
from tacaf.data.pixels import finish_whole
from tacaf.data.plan import Plan
from tacaf.data.reader import ShardReader
from tacaf.images import MEAN, STD, decode
from tacaf.interfaces import Batch
from tacaf.train.config import Config
from tacaf.train.forward import draw
from tacaf.vocabulary import Branch


class ImagesOnDevice:
    """The images of some rows of an index, uint8 [N, 3, H, W] of the training's size."""

    def __init__(self, index: ShardIndex, rows: np.ndarray, height: int, width: int, device: str, threads: int) -> None:
        self.rows, self.device = np.unique(rows), device
        self.images_NCHW = torch.empty(len(self.rows), 3, height, width, dtype=torch.uint8, device=device)
        reader = ShardReader(index)
        encoded = [reader.read(row).tobytes() for row in self.rows.tolist()]
        with ThreadPoolExecutor(threads) as pool:
            for place, pixels_HWC in enumerate(pool.map(decode, encoded)):
                self.images_NCHW[place] = resized(torch.tensor(pixels_HWC).to(device), height, width)

    def of(self, rows: np.ndarray) -> torch.Tensor:
        """The places of these rows in the tensor, int64 on the device."""
        return torch.from_numpy(np.searchsorted(self.rows, rows)).to(self.device)

    def batch(self, config: Config, plan: Plan, epoch: int, step: int) -> Batch:
        """The planned batch of a step, augmented, with its pairs."""
        planned = plan.global_batch(epoch, step)
        augment = config.data.augment
        drawn = draw_parameters(augment, config.seed, epoch, step, planned.position_B, planned.branch_B)
        cropped = normalised(self.cropped(planned.row_B, drawn))
        images_BCHW = finish_whole(cropped, drawn, augment.channel_augment_space)
        batch = Batch(
            images_BCHW,
            label_B=torch.from_numpy(planned.label_B),
            branch_B=torch.from_numpy(planned.branch_B),
            group_B=torch.from_numpy(planned.group_B),
            position_B=torch.from_numpy(planned.position_B),
            row_B=torch.from_numpy(planned.row_B),
            visible=int((planned.branch_B != Branch.INFRARED).sum()),
            epoch=epoch,
            step=step,
            pairs=draw(config, planned, epoch, step),
        )
        return batch.to(torch.device(self.device))

    def cropped(self, rows: np.ndarray, drawn: Parameters) -> torch.Tensor:
        """The images, padded with zeros, cropped and flipped: uint8 [B, 3, H, W]."""
        height, width = self.images_NCHW.shape[2:]
        y_BH = drawn.crop_B2[:, :1] + np.arange(height)
        x_BW = drawn.crop_B2[:, 1:] + np.where(drawn.mirror_B[:, None], np.arange(width)[::-1], np.arange(width))
        y, x = torch.from_numpy(y_BH).to(self.device), torch.from_numpy(x_BW).to(self.device)
        inside_BHW = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
        place = self.of(rows)[:, None, None]
        taken = self.images_NCHW[place, :, y.clamp(0, height - 1)[:, :, None], x.clamp(0, width - 1)[:, None, :]]
        return (taken * inside_BHW[..., None]).permute(0, 3, 1, 2)

    def whole(self, rows: np.ndarray, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields (images float32 [b, 3, H, W], rows int64 [b]) without augmentation, for evaluation."""
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            yield normalised(self.images_NCHW[self.of(some)]), torch.from_numpy(some)


def resized(image_HWC: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Bilinear without antialiasing, uint8 [3, H, W]; within one level of `augment.resize`."""
    image_1CHW = image_HWC.permute(2, 0, 1)[None].float()
    found = F.interpolate(image_1CHW, (height, width), mode="bilinear", align_corners=False, antialias=False)
    return found[0].round().clamp(0, 255).to(torch.uint8)


def normalised(images_BCHW: torch.Tensor) -> torch.Tensor:
    """uint8 to ImageNet's normalisation in float32."""
    mean, std = (
        torch.tensor(values, dtype=torch.float32).to(images_BCHW.device).view(3, 1, 1) for values in (MEAN, STD)
    )
    return (images_BCHW.float() / 255 - mean) / std
