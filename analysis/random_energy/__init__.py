"""Softmax of random logits: V independent N(0, s^2) logits, rows on a sphere, and one planted token among them.

The random energy model of physics in the words of a language-model head: exact expectations at finite V by
quadrature, the limits of large V with their phase boundary at ``s = sqrt(2 log V)``, and the norm product at which a
token stands out.
"""

from ._asymptotic import (
    asymptotic_confidence,
    asymptotic_entropy,
    asymptotic_log_partition,
    asymptotic_participation,
    critical_hidden_size,
    critical_logit_std,
    freezing_temperature,
)
from ._exact import expected_confidence, expected_entropy, expected_log_partition, participation
from ._planted import planted_confidence, planted_norm_product, spherical_log_partition

__all__ = [
    "asymptotic_confidence",
    "asymptotic_entropy",
    "asymptotic_log_partition",
    "asymptotic_participation",
    "critical_hidden_size",
    "critical_logit_std",
    "expected_confidence",
    "expected_entropy",
    "expected_log_partition",
    "freezing_temperature",
    "participation",
    "planted_confidence",
    "planted_norm_product",
    "spherical_log_partition",
]
