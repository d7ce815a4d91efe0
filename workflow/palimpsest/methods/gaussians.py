"""Replay without examples: a Gaussian of full covariance in the place of a keyword's embeddings.

Shapes: N embeddings, D their width.
"""

from __future__ import annotations

import torch
from torch import Tensor

RIDGE = 1e-6  # added to the variances, as in CORE's released code: fewer than D examples span less


def fitted(x_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean_D and the unbiased covariance_DD, in fp32; of one embedding it is zero."""
    x_ND = x_ND.double()
    mean_D = x_ND.mean(0)
    apart_ND = x_ND - mean_D
    return mean_D.float(), (apart_ND.T @ apart_ND / max(1, len(x_ND) - 1)).float()


def drawn(mean_D: Tensor, covariance_DD: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """Return `num` samples x_ND of N(mean, covariance + RIDGE I)."""
    ridge_DD = RIDGE * torch.eye(len(mean_D), dtype=torch.float64)
    factor_DD = torch.linalg.cholesky(covariance_DD.double() + ridge_DD)
    z_ND = torch.randn(num, len(mean_D), dtype=torch.float64, generator=generator)
    return (mean_D + z_ND @ factor_DD.T).float()
