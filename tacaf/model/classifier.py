"""A classifier over any number of identities: cut into pieces, so that a million of them fit where one matrix does not.

B rows, C channels, I identities, N stacked classifiers. The usual softmax with cross-entropy (AGW, LbA); that it is
summed piece by piece is ours. The softmax is exact, over all identities.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import nn
from torch.utils.checkpoint import checkpoint

from tacaf.interfaces import Scores
from tacaf.model.identities import StepIdentities
from tacaf.settings import Settings


class ClassifierConfig(Settings):
    """How the classifiers are kept."""

    sharding: Literal["none", "identities"] = Field(
        "none",
        description=(
            "none: as the other parameters. identities: each rank keeps a range of the identities of every classifier"
            " (`ranges.py`), and features travel instead of weights; with ZeRO stage 0, 1 or 2."
        ),
    )
    negatives: float = Field(
        1.0,
        gt=0,
        le=1,
        description=(
            "Share of the identities outside the batch that a step classifies against, drawn anew in every step; 1: all"
            " of them, the exact softmax. Less is for sharding identities only."
        ),
    )

    @model_validator(mode="after")
    def _draws_from_ranges(self) -> "ClassifierConfig":
        if self.sampled and self.sharding != "identities":
            raise ValueError(
                f"negatives: expected 1 with sharding {self.sharding}, got {self.negatives:g}; set"
                " model.classifier.sharding: identities, which works on one rank too, or model.classifier.negatives: 1"
            )
        return self

    @property
    def sampled(self) -> bool:
        """Whether a step uses some of the identities instead of all."""
        return self.negatives < 1

    def expected_identities(self, identities: int, in_batch: int) -> float:
        """How many of the training set's identities a step uses on average, if its batch has `in_batch` of them."""
        return in_batch + self.negatives * (identities - in_batch)


class _Piece(nn.Module):
    """Some of the identities: logits of rows B x C (weight I x C), or of N x B x C (weight N x I x C). A module of its
    own, so that ZeRO-3 gathers this weight when it is needed and lets go of it after.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        logits = F.linear(rows, self.weight) if self.weight.dim() == 2 else rows @ self.weight.mT
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _own(values: torch.Tensor, place_B: torch.Tensor) -> torch.Tensor:
    """From ... x B x I the value of each row's own place: ... x B."""
    return values.gather(-1, place_B.expand(values.shape[:-1])[..., None]).squeeze(-1)


def _summary(piece: nn.Module, rows: torch.Tensor, label_B: torch.Tensor, start: int) -> torch.Tensor:
    """3 x ... x B: log-sum-exp of the piece's logits, the own logit (0 if another piece has it), their sum."""
    logits = piece(rows)
    place_B = label_B - start
    here_B = (place_B >= 0) & (place_B < logits.shape[-1])
    own = _own(logits, place_B.clamp(0, logits.shape[-1] - 1)) * here_B
    return torch.stack([logits.logsumexp(-1), own, logits.sum(-1)])


class Classifier(nn.ModuleList):
    """Rows and their labels to `Scores`, at most `chunk` identities at a time.

    With one piece it is a linear layer and a log-softmax. With more, the logits of a piece live only while it is summed
    and are computed again in the backward pass: one piece's logits, and under ZeRO-3 few pieces' weights, at a time.
    """

    def __init__(self, weight: torch.Tensor, chunk: int) -> None:
        """`weight` is drawn whole (I x C or N x I x C), so that no value depends on `chunk`; pieces are views of it."""
        super().__init__(_Piece(part.contiguous()) for part in torch.split(weight.detach(), chunk, dim=-2))
        self.identities = weight.shape[-2]
        self.chunk = chunk

    def forward(self, rows: torch.Tensor, label_B: torch.Tensor, used: StepIdentities | None = None) -> Scores:
        """rows B x C or N x B x C, int64 labels B to scores B or N x B, float32 (float64 for float64 rows).

        `used` is None: a step uses all identities of a classifier that is not split.
        """
        assert used is None, "ClassifierConfig refuses it"
        if len(self) == 1:
            log_probability = F.log_softmax(self[0](rows), dim=-1)
            return Scores(_own(log_probability, label_B), log_probability.mean(-1))
        # early_stop=False: ZeRO-3's hooks on a piece come in pairs, also when it is computed again.
        summaries = [
            checkpoint(
                _summary,
                piece,
                rows,
                label_B,
                number * self.chunk,
                use_reentrant=False,
                preserve_rng_state=False,
                early_stop=False,
            )
            for number, piece in enumerate(self)
        ]
        log_sum, own, total = torch.stack(summaries, dim=1)
        whole = log_sum.logsumexp(0)
        return Scores(own.sum(0) - whole, total.sum(0) / self.identities - whole)
