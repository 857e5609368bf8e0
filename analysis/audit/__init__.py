"""Audit of a real language model: what its head allows, how calibrated it is on a text, and what smoothing would do.

On the command line ``python -m analysis.audit``. Models and texts are read by :mod:`analysis.language_models`.
"""

from ._audit import Audit, audit_model
from ._panels import draw_audit
from ._recommendation import recommendation
from ._verdict import verdict

__all__ = ["Audit", "audit_model", "draw_audit", "recommendation", "verdict"]
