"""The last operations of the augmentation, on the device of the images: erasing and the channel matrix.

They change few pixels or copy whole channels, which tensors do at memory speed. As operators of the DALI graph, on
images of interleaved channels, they would cost more than decoding. `augment.reference` defines what they compute.
`finish` is for a CPU: it processes one image after another and changes no more than it must. `finish_whole` is for a
GPU, where each operation costs a launch: it processes a whole batch in few operations.
B images of C = 3 channels, H x W pixels.
"""

import numpy as np
import torch

from tacaf.data.augment import ERASE_FILL, Parameters
from tacaf.images import MEAN, STD
from tacaf.transfer import to_device


def finish(images_BCHW: torch.Tensor, drawn: Parameters, space: str, out_BCHW: torch.Tensor) -> None:
    """Erase and mix the channels of normalised images into `out_BCHW`, both float32; the images may be overwritten.

    space: `normalized` erases first and mixes the normalised values; `raw` mixes the values before normalisation, and
    erases last.
    """
    fill_C11 = torch.tensor(ERASE_FILL, device=images_BCHW.device).view(3, 1, 1)
    boxes = np.concatenate([drawn.erase_anchor_B2, drawn.erase_anchor_B2 + drawn.erase_shape_B2], axis=1).tolist()
    for place, ((top, left, bottom, right), matrix_CC) in enumerate(zip(boxes, drawn.channel_BCC, strict=True)):
        image, out = images_BCHW[place], out_BCHW[place]
        erased = image if space == "normalized" else out
        if space == "raw":
            mix_raw(image, matrix_CC, out)
        if bottom > top:
            erased[:, top:bottom, left:right] = fill_C11
        if space == "normalized":
            mix(image, matrix_CC, out)


def mix(image_CHW: torch.Tensor, matrix_CC: np.ndarray, out_CHW: torch.Tensor) -> None:
    """out = M image. The result is bit-exact if M is the identity or repeats one channel."""
    rows = matrix_CC.tolist()
    if rows == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]:  # the usual case, and the next one: a single copy each
        out_CHW.copy_(image_CHW)
        return
    if sorted(rows[0]) == [0, 0, 1] and rows[0] == rows[1] == rows[2]:
        out_CHW.copy_(image_CHW[rows[0].index(1)].expand_as(out_CHW))
        return
    for channel, row_C in enumerate(rows):
        torch.mul(image_CHW[0], row_C[0], out=out_CHW[channel])
        out_CHW[channel].add_(image_CHW[1], alpha=row_C[1]).add_(image_CHW[2], alpha=row_C[2])


def mix_raw(image_CHW: torch.Tensor, matrix_CC: np.ndarray, out_CHW: torch.Tensor) -> None:
    """out = (M (std image + mean) - mean) / std: the matrix acts on the values before the normalisation."""
    scale_CC, shift_C = of_raw(matrix_CC)
    mix(image_CHW, scale_CC, out_CHW)
    for channel, shift in enumerate(shift_C.tolist()):
        if shift:
            out_CHW[channel].add_(shift)


def of_raw(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Matrices on raw values, ... x C x C, as matrices on normalised values, ... x C x C, and a shift, ... x C."""
    return matrix.astype(np.float64) * STD[None, :] / STD[:, None], (matrix @ MEAN - MEAN) / STD


def finish_whole(images_BCHW: torch.Tensor, drawn: Parameters, space: str) -> torch.Tensor:
    """The result of `finish` as a new float32 tensor: bit-exact where M selects channels, else up to rounding.

    The parameters are transferred in two asynchronous copies.
    """
    device, (height, width) = images_BCHW.device, images_BCHW.shape[2:]
    scale_BCC, shift_BC = drawn.channel_BCC, np.zeros((len(images_BCHW), 3))
    if space == "raw":
        scale_BCC, shift_BC = of_raw(drawn.channel_BCC)
    fill_BC = np.broadcast_to(ERASE_FILL, shift_BC.shape)
    numbers_BXC = np.concatenate([scale_BCC.swapaxes(1, 2), shift_BC[:, None], fill_BC[:, None]], axis=1)
    numbers = to_device(torch.from_numpy(numbers_BXC.astype(np.float32)), device)[..., None, None].unbind(1)
    first_BC11, second_BC11, third_BC11, shift_BC11, fill_BC11 = numbers  # columns of M, then the two vectors
    row_BH, column_BW = to_device(_inside(drawn, height, width), device).split([height, width], dim=1)
    inside_B1HW = row_BH[:, None, :, None] & column_BW[:, None, None, :]
    if space == "normalized":
        images_BCHW = torch.where(inside_B1HW, fill_BC11, images_BCHW)
    # Not a matrix product, because that may round its factors to TF32.
    red_B1HW, green_B1HW, blue_B1HW = images_BCHW.split(1, dim=1)
    mixed_BCHW = torch.addcmul(shift_BC11, red_B1HW, first_BC11)
    mixed_BCHW.addcmul_(green_B1HW, second_BC11).addcmul_(blue_B1HW, third_BC11)
    return torch.where(inside_B1HW, fill_BC11, mixed_BCHW) if space == "raw" else mixed_BCHW


def _inside(drawn: Parameters, height: int, width: int) -> torch.Tensor:
    """The rows, then the columns that the erased box of each image covers: bool B x (H + W), on the host."""
    start_B2, stop_B2 = drawn.erase_anchor_B2, drawn.erase_anchor_B2 + drawn.erase_shape_B2
    sides = [
        (start_B2[:, side, None] <= np.arange(size)) & (np.arange(size) < stop_B2[:, side, None])
        for side, size in enumerate((height, width))
    ]
    return torch.from_numpy(np.concatenate(sides, axis=1))
