"""The last operations on an image, on the device where it lies: erasing and the channel matrix.

They touch few pixels, or copy whole channels, which a tensor does at memory speed; as operators of the graph, on whole
images of interleaved channels, they cost more than decoding. What they compute is `augment.reference`.
B images of C = 3 channels, H x W pixels.
"""

import numpy as np
import torch

from tacaf.data.augment import ERASE_FILL, MEAN, STD, Parameters


def finish(images_BCHW: torch.Tensor, drawn: Parameters, space: str, out_BCHW: torch.Tensor) -> None:
    """Erase and mix the channels of normalised images into `out_BCHW`, both float32; the images may be overwritten.

    space: `normalized` erases first and mixes the normalised values; `raw` mixes what they were before the
    normalisation, and erases last.
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
    """out = M image. Where M changes nothing or repeats one channel, bit by bit."""
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
    scale_CC = matrix_CC.astype(np.float64) * STD[None, :] / STD[:, None]
    mix(image_CHW, scale_CC, out_CHW)
    for channel, shift in enumerate(((matrix_CC @ MEAN - MEAN) / STD).tolist()):
        if shift:
            out_CHW[channel].add_(shift)
