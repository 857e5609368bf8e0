"""The effective logit gap: the scale on which caps, temperature and smoothing are compared."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit

from ..checks import interval, one_index, real, require_broadcast, softcap_or_inf, whole


@one_index
def gap_to_confidence(gap: ArrayLike, vocab_size: ArrayLike) -> NDArray[np.float64]:
    r"""Turn a gap into the probability of a token whose logit exceeds the V - 1 others, all equal, by ``gap`` nats.

    .. math:: p = \frac{1}{1 + (V-1)\,e^{-G}} = \operatorname{expit}(G - \log(V-1))

    Args:
        gap: Gap G in nats, any real number or +-inf. Broadcasts with ``vocab_size``.
        vocab_size: Number of classes V >= 2.

    Returns:
        The probability in [0, 1], with the broadcast shape. Exact to rounding for any gap; above G ~ log V + 37 it is
        1.0, so keep the gap itself where 1 - p matters.

    Raises:
        ValueError: If ``gap`` is NaN, ``vocab_size`` is not a whole number >= 2, or the shapes do not broadcast.

    Example:
        >>> gap_to_confidence([0.0, 10.0, 20.0], 32768).round(5).tolist()
        [3e-05, 0.40199, 0.99993]
    """
    g, v = real("gap", gap), whole("vocab_size", vocab_size, 2)
    require_broadcast(gap=g, vocab_size=v)
    return expit(g - np.log(v - 1))


@one_index
def confidence_to_gap(confidence: ArrayLike, vocab_size: ArrayLike) -> NDArray[np.float64]:
    r"""Turn a confidence into its effective logit gap in nats: the inverse of :func:`gap_to_confidence`.

    .. math:: G = \log\frac{(V-1)\,p}{1-p} = -\log \operatorname{mean}_{k \ne y} e^{-(z_y - z_k)}

    The second form is why a bound on the mean of z_y - z_k bounds G (Jensen): every cap here uses it.

    Args:
        confidence: Probability p in [0, 1] of the token. Broadcasts with ``vocab_size``.
        vocab_size: Number of classes V >= 2.

    Returns:
        The gap, with the broadcast shape; 0 at p = 1/V, -inf at 0 and inf at 1.

    Raises:
        ValueError: If ``confidence`` is outside [0, 1], ``vocab_size`` is not a whole number >= 2, or the shapes do not
            broadcast.

    Example:
        >>> float(confidence_to_gap(0.9, 32768).round(3))
        12.594
    """
    p, v = interval("confidence", confidence, 0, 1), whole("vocab_size", vocab_size, 2)
    require_broadcast(confidence=p, vocab_size=v)
    return logit(p) + np.log(v - 1)


@one_index
def max_gap(
    norm_product: ArrayLike,
    vocab_size: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    softcap: ArrayLike | None = None,
) -> NDArray[np.float64]:
    r"""Bound the gap, in nats, that a head can give to every token at once, under temperature and softcap.

    .. math:: \min_k G_k \le \frac{2c}{T}\tanh\Bigl(\frac{m V}{(V-1)\,2c}\Bigr), \qquad
              \to \frac{m V}{(V-1)\,T}\ \text{ without a cap.}

    Reason: Jensen bounds G_k by the mean over the others of the capped logit differences; tanh a - tanh b <=
    2 tanh((a - b) / 2) for a >= b; tanh is concave on [0, inf); and the raw differences average to at most m V / (V -
    1).

    Without a cap this is attained, by the simplex, iff ``hidden_size >= vocab_size - 1``. With a cap it is a simple
    upper bound; the proof above needs every target to be the argmax of its own context. :func:`softcap_gap` needs no
    such condition, is up to 17 % tighter and was never above this one in 200,000 random configurations;
    :func:`attained_gap` is what heads reach.

    Args:
        norm_product: m = max ||h|| max ||w_k|| >= 0, in logit units before cap and temperature.
        vocab_size: Number of classes V >= 2.
        temperature: Temperature T > 0, applied after the cap.
        softcap: Cap c > 0 of ``c tanh(z / c)``, or None for no cap.

    Returns:
        The gap in nats, with the broadcast shape of all arguments.

    Raises:
        ValueError: If an argument is outside its range or the shapes do not broadcast.

    Example:
        >>> max_gap(12.0, 32, softcap=[5.0, 1e9]).round(3).tolist()
        [8.451, 12.387]
    """
    m, v = interval("norm_product", norm_product, 0), whole("vocab_size", vocab_size, 2)
    t, c = interval("temperature", temperature, 0, open_low=True), softcap_or_inf(softcap)
    require_broadcast(norm_product=m, vocab_size=v, temperature=t, softcap=c)
    simplex_gap = m * (v / (v - 1))  # equation A2
    with np.errstate(invalid="ignore"):  # inf * tanh(0), where there is no cap
        capped = 2 * c * np.tanh(simplex_gap / (2 * c))  # equation C2
    return np.where(np.isinf(c), simplex_gap, capped)[()] / t
