"""Real language models: load one, read documents with it, and score every token that its head predicts.

For any Hugging Face causal language model whose architecture :mod:`kernel.huggingface` knows. This module imports
without transformers; loading a model needs the extra ``real``.
"""

from .documents import python_text, read_text
from .features import HiddenStates, ModelHead, head_of, hidden_states
from .loading import LoadedModel, load_model
from .packaged import packaged_gemma, packaged_smollm2
from .scoring import TokenScores, score_tokens

__all__ = [
    "HiddenStates",
    "LoadedModel",
    "ModelHead",
    "TokenScores",
    "head_of",
    "hidden_states",
    "load_model",
    "packaged_gemma",
    "packaged_smollm2",
    "python_text",
    "read_text",
    "score_tokens",
]
