"""Embedding images on all ranks, and gathering the embeddings in the order of their index rows, each image once.

The caller passes the model as a function and the index as columns, so this file depends on neither.
"""

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
import torch.distributed as dist

from tacaf.distributed import gather_objects, gather_rows, world_size
from tacaf.evaluation.features import FeatureSet
from tacaf.vocabulary import InputError, Modality

Embed = Callable[[torch.Tensor, Modality], torch.Tensor]


@torch.no_grad()
def extract(
    embed: Embed,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    columns: Mapping[str, np.ndarray],
    rows: np.ndarray | None = None,
) -> FeatureSet:
    """Embed every batch of this rank, gather from all ranks and sort by row. The result is the same on every rank.

    embed: from images [b, C, H, W] of one modality, and that modality, to embeddings [b, d]; the caller sets the mode.
    batches: this rank's (images, rows), rows int64 [b], the images' rows in `columns`; modalities may be mixed. A rank
    may have no batches, and ranks may repeat an image to fill their last batch: the first copy is kept.
    columns: whole index columns `pid`, `camid`, `modality` (codes) and `number`.
    rows: the rows that are expected; raises InputError if the result has others.
    Returns float32 features. A collective call.
    """
    modality = np.asarray(columns["modality"])
    parts = [_embed_batch(embed, images, batch_rows, modality) for images, batch_rows in batches]
    own_rows = torch.cat([part[0] for part in parts]) if parts else torch.empty(0, dtype=torch.int64)
    features = _gather(torch.cat([part[1] for part in parts]) if parts else None)
    all_rows = np.concatenate(gather_objects(own_rows.numpy()))
    kept, first = np.unique(all_rows, return_index=True)
    if rows is not None and not np.array_equal(kept, np.unique(rows)):
        different = np.setxor1d(kept, rows)
        raise InputError(
            f"expected features of {len(np.unique(rows))} images, got {len(kept)} (row {different[0]} differs); "
            "pass batches that cover exactly these images"
        )
    pid, camid, number = (np.asarray(columns[name])[kept].astype(np.int64) for name in ("pid", "camid", "number"))
    return FeatureSet(features.numpy()[first], pid, camid, modality[kept].astype(np.uint8), number)


def _embed_batch(
    embed: Embed, images: torch.Tensor, rows: torch.Tensor, modality: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and embeddings of one batch on the CPU, with each modality embedded separately."""
    rows = torch.as_tensor(rows, dtype=torch.int64).cpu()
    codes = torch.from_numpy(modality[rows.numpy()].astype(np.int64))
    order, embeddings = [], []
    for kind in Modality:
        where = torch.nonzero(codes == kind.code).flatten()
        if len(where):
            order.append(where)
            embeddings.append(embed(images[where.to(images.device)], kind).float().cpu())
    return rows[torch.cat(order)], torch.cat(embeddings)


def _gather(features_ND: torch.Tensor | None) -> torch.Tensor:
    """All ranks' features in rank order, on the CPU; a rank without images passes None."""
    shapes = [shape for shape in gather_objects(None if features_ND is None else tuple(features_ND.shape)) if shape]
    if not shapes:
        raise InputError("expected images to extract features from, got none; check the split and the index")
    if world_size() == 1:
        assert features_ND is not None
        return features_ND
    counts = gather_objects(0 if features_ND is None else len(features_ND))
    padded = torch.zeros(max(counts), shapes[0][1])
    if features_ND is not None:
        padded[: len(features_ND)] = features_ND
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    gathered = gather_rows(padded.to(device)).cpu()
    return torch.cat([gathered[i * max(counts) :][:count] for i, count in enumerate(counts)])
