"""How a missing package is installed: the one place that knows whether the project is in a package index."""

__all__ = ["pip_install"]


def pip_install(extra: str) -> str:
    """Write the command that installs an extra. The project is in no package index yet: it takes a clone.

    Example:
        >>> pip_install("huggingface")
        "pip install '.[huggingface]' in a clone of the repository"
    """
    return f"pip install '.[{extra}]' in a clone of the repository"
