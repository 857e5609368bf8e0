"""Real language models: load one, read documents with it, and score every token that its head predicts.

For any Hugging Face causal language model whose architecture :mod:`kernel.huggingface` knows. This module imports
without transformers; loading a model needs the extra ``real``.
"""

from .documents import python_text, read_text
from .features import HiddenStates, ModelHead, features, head_of
from .loading import LoadedModel, load_model, packaged_smollm2
from .scoring import TokenScores, score_tokens

__all__ = [
    "HiddenStates",
    "LoadedModel",
    "ModelHead",
    "TokenScores",
    "features",
    "head_of",
    "load_model",
    "packaged_smollm2",
    "python_text",
    "read_text",
    "score_tokens",
]
