"""How a missing package is installed, for rooms that do without torch."""

__all__ = ["pip_install"]


def pip_install(extra: str) -> str:
    """Write the command that installs an extra, as ``kernel.extras`` has it."""
    from kernel import extras  # here, for all: kernel loads torch, and only who lacks a package waits for that

    return extras.pip_install(extra)
