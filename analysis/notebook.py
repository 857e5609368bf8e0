"""What the notebooks share: one look, figures with controls, and the committed tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .command import committed_folder

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["committed_table", "explore", "look", "say"]

_RC: Any = {
    "figure.figsize": (7.0, 3.0),  # inches
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.title_fontsize": "medium",
    "lines.markersize": 5,
}


def look() -> None:
    """Give all figures of this session the look of the notebooks: seaborn's colour-blind palette, no boxes.

    Changes matplotlib's global settings, as nothing else in this package does: call it in a notebook only.
    """
    import seaborn

    seaborn.set_theme(context="paper", style="ticks", palette="colorblind", font_scale=1.1, rc=_RC)


def explore(draw: Callable[..., object], **controls: Any) -> None:
    """Draw a figure, with a control for each parameter named where somebody is there to move it.

    Where ipywidgets is missing, outside Jupyter, and where a notebook is executed without a front end (nbclient,
    nbconvert, papermill: they allow no questions), ``draw`` is called once with its defaults, so that the figure lies
    in the notebook as a picture.

    Args:
        draw: Draws, and shows, one figure. Every parameter needs a default, the first value of its control.
        **controls: Parameter name -> (low, high, step) for a slider, a list for a menu, a bool for a box; what
            :func:`ipywidgets.interactive` takes.

    Raises:
        TypeError: If a control names no parameter of ``draw``, or a parameter has no default.
    """
    import inspect

    defaults = {name: parameter.default for name, parameter in inspect.signature(draw).parameters.items()}
    if inspect.Parameter.empty in defaults.values():
        raise TypeError(f"draw must have a default for every parameter, got {inspect.signature(draw)}.")
    unknown = sorted(set(controls) - set(defaults))
    if unknown:
        raise TypeError(f"controls must name parameters of draw, {sorted(defaults)}, got {unknown}.")
    if not _somebody_is_there():
        draw()
        return
    from IPython.display import display
    from ipywidgets import fixed, interactive  # pyright: ignore[reportMissingImports]

    panel: Any = interactive(draw, **{name: controls.get(name, fixed(value)) for name, value in defaults.items()})
    for control in panel.children[:-1]:  # the last is the figure
        control.description = control.description.replace("_", " ")
        control.style.description_width = "initial"  # else long names are cut
        control.continuous_update = False  # draw when a slider is let go, not on the way
    display(panel)


def _somebody_is_there() -> bool:
    """Whether the front end that asked for this cell answers questions and could show a control."""
    try:
        import ipywidgets  # noqa: F401  # pyright: ignore[reportMissingImports]
        from IPython.core.getipython import get_ipython
    except ImportError:
        return False
    kernel = getattr(get_ipython(), "kernel", None)
    if kernel is None:  # a script, or IPython in a terminal
        return False
    # allow_stdin of the execute_request: part of Jupyter's messaging protocol
    return bool(kernel.get_parent("shell").get("content", {}).get("allow_stdin", False))


def say(text: str, width: int = 88) -> None:
    r"""Print paragraphs in lines that the page of a notebook holds, with an empty line between them.

    Args:
        text: Sentences, a paragraph in each line.
        width: Most characters in a line, at least 1.

    Raises:
        ValueError: If the width is below 1.

    Example:
        >>> say("Calibration. The model is sure.\nSmoothing. It would act.", width=20)
        Calibration. The
        model is sure.
        <BLANKLINE>
        Smoothing. It would
        act.
    """
    import textwrap

    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}.")
    fill = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False).fill
    print("\n\n".join(fill(line) for line in text.splitlines() if line.strip()))


def committed_table(name: str) -> pd.DataFrame:
    """Read a committed table (:func:`analysis.command.committed_folder`).

    Args:
        name: Its path in that folder without the ending: ``"quick/S7"``, ``"quick/verdicts"``, ``"chunked"``.

    Returns:
        The rows.

    Raises:
        FileNotFoundError: If there is no such table, with what to do about it.

    Example:
        >>> committed_table("transition")["label_smoothing"].unique().tolist()
        [0.1]
    """
    from .lab.tables import find_table, read_table

    place = committed_folder() / name
    path = find_table(place.parent, place.name)
    if path is None:
        raise FileNotFoundError(
            f"there is no table {name}.csv in {place.parent}: a clone of the repository has all that are committed, "
            "and python -m analysis.study makes those of the study anew."
        )
    return read_table(path)
