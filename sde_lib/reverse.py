"""Time reversal: the reverse-time SDE, its probability-flow ODE, and the denoiser.

Both drifts are in forward time: a solver that goes from t to t − h with h > 0 adds −h times the drift.
"""

from __future__ import annotations

from sde_lib.processes import SDE, Sample, Scalar


def reverse_drift(sde: SDE, x: Sample, t: Scalar, score: Sample) -> Sample:
    """f(x, t) − g(t)^2 s(x, t), the drift of the reverse SDE (arXiv 2011.13456, eq. 6)."""
    return sde.drift(x, t) - sde.diffusion(t) ** 2 * score


def probability_flow_drift(sde: SDE, x: Sample, t: Scalar, score: Sample) -> Sample:
    """f(x, t) − g(t)^2 s(x, t)/2, the drift of the ODE with the same marginals (same source, eq. 13)."""
    return sde.drift(x, t) - 0.5 * sde.diffusion(t) ** 2 * score


def denoise(sde: SDE, x: Sample, t: Scalar, score: Sample) -> Sample:
    """E[x(0) | x(t) = x] = (x + sigma^2 s)/alpha, Tweedie's formula.

    The published code omits the division by alpha, which for VP at t = 1e-3 is a factor of 1.00005.
    """
    alpha, sigma = sde.marginal(t)
    return (x + sigma**2 * score) / alpha
