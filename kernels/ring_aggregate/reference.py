"""The definition of cyclic neighbour aggregation in plain PyTorch, which tests compare with (paper §3; method §5.2).

Legend: B images, R parts of the ring, D node width, A projection width.
"""

import torch

from kernels.common.dtypes import compute_dtype


def ring_aggregate(
    parts_BRD: torch.Tensor, theta_BRA: torch.Tensor, phi_BRA: torch.Tensor, rounds: int
) -> torch.Tensor:
    """Let every part of a ring look at itself and its two neighbours, `rounds` times.

    A round: b_ij = softmax over j in {i, i-1, i+1 mod R} of <theta_i, phi_j> / sqrt(A); u_i <- sum_j b_ij u_j. The
    projections theta = Theta u and phi = Phi u are linear without bias, so they follow the same recurrence and are
    given once.
    parts_BRD: B x R x D, R >= 3; theta_BRA, phi_BRA: B x R x A. Returns u after the rounds, B x R x D in the parts'
    dtype, summed in float32 (float64 for float64); the caller adds the self-connection.
    """
    with torch.autocast(parts_BRD.device.type, enabled=False):
        u, theta, phi = (x.to(compute_dtype(parts_BRD)) for x in (parts_BRD, theta_BRA, phi_BRA))
        for _ in range(rounds):
            score = [(theta * torch.roll(phi, shift, dims=1)).sum(-1) for shift in (0, 1, -1)]
            own, before, after = torch.softmax(torch.stack(score) / theta.shape[-1] ** 0.5, dim=0).unsqueeze(-1)
            u, theta, phi = (own * x + before * x.roll(1, 1) + after * x.roll(-1, 1) for x in (u, theta, phi))
        return u.to(parts_BRD.dtype)
