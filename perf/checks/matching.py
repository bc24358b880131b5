"""Measures how often a correspondence between two pictures of one person is right."""

import numpy as np
import torch
import torch.nn.functional as F

from perf.checks.known_people import Picture
from tacaf.model.correspondence import Correspondence
from tacaf.vocabulary import InputError

SHIFT = 1 / 3  # of the crop's height: two cells of a map of 6 rows, so that the unshifted position is wrong by two


def matches(matching_LL: torch.Tensor, person_HW: torch.Tensor, other_HW: torch.Tensor, down: int) -> dict[str, float]:
    """Shares of right matches among the positions that are mostly person in both pictures (`down` rows lower in one).

    within, exact: the best match is within one cell of the truth, or equal to it; the same for a random target (chance)
    and for the position itself (still). Empty if there is no such position.
    """
    height, width = person_HW.shape
    found: dict[str, list[float]] = {name: [] for name in ("within", "exact", "chance", "chance_exact", "still")}
    for row in range(max(0, -down), min(height, height - down)):
        for column in range(width):
            if person_HW[row, column] <= 0.5 or other_HW[row + down, column] <= 0.5:
                continue
            best = divmod(int(matching_LL[row * width + column].argmax()), width)
            off = max(abs(best[0] - row - down), abs(best[1] - column))
            near = sum(abs(y - row - down) <= 1 for y in range(height)) * sum(
                abs(x - column) <= 1 for x in range(width)
            )
            found["within"].append(off <= 1)
            found["exact"].append(off == 0)
            found["chance"].append(near / (height * width))
            found["chance_exact"].append(1 / (height * width))
            found["still"].append(abs(down) <= 1)
    return {name: float(np.mean(values)) for name, values in found.items() if values}


def finds_more(before: dict[str, tuple[float, float]], after: dict[str, tuple[float, float]]) -> bool:
    return after["within"][0] > max(before["within"][0], after["chance"][0], after["still"][0])


def right_shares(seen: Correspondence, pairs: list[tuple[Picture, Picture]]) -> list[dict[str, float]]:
    """`matches` of every pair for which it is not empty."""
    size = (seen.height, seen.width)
    cells = [[F.adaptive_avg_pool2d(torch.from_numpy(cut)[None], size)[0] for _, cut in pair] for pair in pairs]
    down = round(SHIFT * seen.height)
    shares = [
        matches(matching_LL, person_HW, other_HW, down)
        for matching_LL, (person_HW, other_HW) in zip(seen.matching_NLL, cells, strict=True)
    ]
    return [share for share in shares if share]


def spread(shares: list[dict[str, float]]) -> dict[str, tuple[float, float]]:
    """Name -> mean over the pairs and its standard error."""
    if len(shares) < 2:
        raise InputError(
            f"expected at least 2 pairs with the person in both pictures, got {len(shares)}; raise --people"
        )
    return {
        name: (
            float(np.mean([share[name] for share in shares])),
            float(np.std([share[name] for share in shares], ddof=1) / len(shares) ** 0.5),
        )
        for name in shares[0]
    }
