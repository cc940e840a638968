"""Whether the bound can be taken for log evidence: it no longer rises with K, and many particles carry the weight."""

from typing import NamedTuple

import numpy as np

MIN_RISE = 0.1  # nats per unit that matter
MIN_REMAINDER = 0.03  # nats per unit that are still to come, by the law of 1/K
NUM_ERRORS = 3.0


class Rise(NamedTuple):
    """How much the bound with all particles lies above that with fewer."""

    nats: float  # per unit
    start: int  # the number of particles that it rises from


def rise(
    sizes: np.ndarray, bounds: np.ndarray, standard_errors: np.ndarray, effective_sample_size: np.ndarray
) -> Rise | None:
    r"""The rise of the bound up to all K particles, if it is no noise and there is more to come; else None.

    It is that from the largest size k up to K / 2. The bias of the bound is of order 1/K (Domke and Sheldon 2018), so
    that a rise by r leaves about :math:`r / (K / k - 1)` to come: even a good guide has bounds that rise from K = 1.
    Where weights have heavy tails, more is to come than this. Where half of the particles are effective, as a mean over
    units, about :math:`1 / 2K` is to come at most, and no rise counts.

    Args:
      sizes: numbers of particles, the last of which is K; shape ``(sizes,)``.
      bounds: shape ``(sizes, units)``, in nats.
      standard_errors: those over particles, the same shape.
      effective_sample_size: of all particles, that of each unit where it is known.

    References:
      Domke and Sheldon, Importance Weighting and Variational Inference, 2018, arXiv 1808.09034.
    """
    smaller = np.flatnonzero(2 * sizes <= sizes[-1])
    if not (smaller.size and effective_sample_size.size) or np.mean(effective_sample_size) >= (sizes[-1] + 1) / 2:
        return None
    first = smaller[-1]
    pairs, errors = (np.asarray(x, float)[[first, -1]] for x in (bounds, standard_errors))
    known = np.all(np.isfinite(pairs) & np.isfinite(errors), axis=0)
    if not known.any():
        return None
    nats = float(np.mean(pairs[1, known] - pairs[0, known]))
    error = float(np.sqrt(np.sum(errors[:, known] ** 2))) / np.sum(known)
    remainder = nats / (sizes[-1] / sizes[first] - 1)
    counts = nats > max(MIN_RISE, NUM_ERRORS * error) and remainder > MIN_REMAINDER
    return Rise(nats, int(sizes[first])) if counts else None


def num_poor(effective_sample_size: np.ndarray, num: int) -> tuple[float, int]:
    """The limit of effective sample sizes that are too small for K particles, and of how many live units they are.

    That is 1 % of K, or 5 if that is more, but no more than a tenth of K, where K is small.
    """
    limit = min(max(5.0, num / 100), num / 10)
    return limit, int(np.sum((effective_sample_size > 0) & (effective_sample_size < limit)))
