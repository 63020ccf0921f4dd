"""Log-probabilities of K given ids a row, and their gradient. Shapes: T tokens, V vocabulary, K ids a row.

Statistics and gradient of the rows are those of `row_forward` and `row_backward` with a target of −1, which is nobody; what belongs to
the K ids is [T, K] and done here by torch's own operators. An id may stand in a row more than once; −100 is no id.
"""

from __future__ import annotations

import torch
from torch import Tensor

from soundrl.kernels.softmax import IGNORED, Softmax, bounded


def row_targets(ids: Tensor) -> Tensor:
    """The target of each row as `row_forward` takes it: ids [T] themselves; of ids [T, K], −100 where all of a row are, else −1."""
    return ids if ids.ndim == 1 else torch.where((ids == IGNORED).all(-1), IGNORED, -1)


def entries(logits_TV: Tensor, ids_TK: Tensor, softmax: Softmax, m_T: Tensor, log_sum_T: Tensor) -> Tensor:
    """log p of the ids [T, K]; ids outside the vocabulary count as its nearest end."""
    at_TK = ids_TK.clamp(0, logits_TV.shape[1] - 1)
    u_TK = bounded(logits_TV.gather(-1, at_TK), softmax, at_TK)
    return (u_TK - m_T[:, None]) / softmax.divisor(m_T) - log_sum_T[:, None]


def gather_logprobs(logits_TV: Tensor, ids_TK: Tensor, softmax: Softmax, m_T: Tensor, log_sum_T: Tensor) -> Tensor:
    """log p of the ids [T, K]: 0 for −100, NaN for any other id outside the vocabulary."""
    logp_TK = entries(logits_TV, ids_TK, softmax, m_T, log_sum_T)
    logp_TK = logp_TK.masked_fill_((ids_TK < 0) | (ids_TK >= logits_TV.shape[1]), torch.nan)
    return logp_TK.masked_fill_(ids_TK == IGNORED, 0.0)


def coefficients(ids_TK: Tensor, grads: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """From the gradients of log-probs [T, K], entropies and log-sum-exps [T]: the first less what −100 got, and `row_backward`'s three."""
    of_logprob_TK, of_entropy_T, of_lse_T = grads
    ignored_TK = ids_TK == IGNORED
    of_logprob_TK, dead_T = of_logprob_TK.masked_fill(ignored_TK, 0.0), ignored_TK.all(-1)
    of_mass_T = (of_logprob_TK.sum(-1) - of_lse_T).masked_fill(dead_T, 0.0)
    return of_logprob_TK, (torch.zeros_like(of_mass_T), of_mass_T, of_entropy_T.masked_fill(dead_T, 0.0))


def scatter_gradient(
    dlogits_TV: Tensor,
    ids_TK: Tensor,
    logp_TK: Tensor,
    of_logprob_TK: Tensor,
    softmax: Softmax,
    statistics: tuple[Tensor, ...],
    grads: tuple[Tensor, ...],
) -> None:
    """Put the gradient of the ids' own logits in its place, after `row_backward` has written the rest with the same `grads`.

    logp_TK     `entries` of the logits, taken before their gradient was written over them
    statistics  (m, log S, entropy); of_logprob_TK and grads from `coefficients`

    A place is overwritten with its whole gradient, rounded once: added to what stands there already rounded, 1 − p loses its small end.
    """
    vocabulary = dlogits_TV.shape[1]
    (m_T, log_sum_T, entropy_T), (_, of_mass_T, of_entropy_T) = statistics, grads
    p_TK = logp_TK.exp()
    of_TK = of_mass_T[:, None] + of_entropy_T[:, None] * (logp_TK + entropy_T[:, None])
    given_TK = of_logprob_TK.masked_fill((ids_TK < 0) | (ids_TK >= vocabulary), 0.0)
    at_TK = ids_TK.clamp(0, vocabulary - 1)  # −100 falls on entry 0, whose gradient is as right there as anyone's
    dz_TK = _of_equal_ids(at_TK, given_TK) - (p_TK * of_TK).masked_fill(p_TK == 0, 0.0)
    divisor = softmax.divisor(m_T)
    dz_TK = dz_TK / divisor
    if softmax.softcap:
        u_TK = m_T[:, None] + (logp_TK + log_sum_T[:, None]) * divisor
        dz_TK *= 1 - (u_TK / softmax.softcap) ** 2
    live_T = (of_logprob_TK != 0).any(-1) | (of_mass_T != 0) | (of_entropy_T != 0)
    dlogits_TV.scatter_(-1, at_TK, dz_TK.masked_fill_(~live_T[:, None], 0.0).to(dlogits_TV.dtype))


def _of_equal_ids(ids_TK: Tensor, x_TK: Tensor) -> Tensor:
    """Σ of x over the places of a row with the same id, at each of them. Worked example: ids [7, 2, 7], x [1, 5, 10] → [11, 5, 11]."""
    first_TK = torch.searchsorted(ids_TK.sort(-1).values, ids_TK)
    sums_TK = torch.zeros_like(x_TK).scatter_add_(-1, first_TK, x_TK)
    return sums_TK.gather(-1, first_TK)
