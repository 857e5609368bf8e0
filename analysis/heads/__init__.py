"""Audit of a real language model: what its head allows, how calibrated it is on a text, and what smoothing would do.

For any Hugging Face causal language model whose architecture :mod:`kernel.huggingface` knows; on the command line
``python -m analysis.audit``. This module imports without transformers; loading a model needs the extra ``real``.
"""

from ._audit import Audit, audit_model
from ._documents import python_text, read_text
from ._loading import LoadedModel, load_model, packaged_smollm2
from ._panels import draw_audit
from ._verdict import verdict

__all__ = [
    "Audit",
    "LoadedModel",
    "audit_model",
    "draw_audit",
    "load_model",
    "packaged_smollm2",
    "python_text",
    "read_text",
    "verdict",
]
