"""Arguments as they come: arrays of any origin, options, and pandas objects that may be paired by position."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Function = TypeVar("Function", bound=Callable[..., Any])


def shown(value: object) -> str:
    """Return the value as the caller wrote it, cut to a readable length."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def converted(name: str, value: Any) -> NDArray[Any] | None:
    """Return the argument as an array of any dtype, None where it is none; refuse masked arrays: the mask is lost."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must not be a masked array: select the entries to use.")
    try:
        if hasattr(value, "detach"):  # a torch tensor, recognised without importing torch
            value = value.detach().cpu()
            value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
        return np.asarray(value)
    except Exception:  # ragged lists, tensors that are sparse or of 8 bits
        return None


def as_numpy(name: str, value: Any) -> NDArray[Any]:
    """Return the argument as an array; a torch tensor is detached and copied to the host, bfloat16 through float32."""
    array = converted(name, value)
    if array is None:
        raise TypeError(f"{name} must be an array, got {type(value).__name__}.")
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be an array of numbers or booleans, got dtype {array.dtype}.")
    return array


def check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is not one of the allowed words."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, got {value!r}.")


def check_count(name: str, value: Any, low: int = 1, high: float = math.inf) -> int:
    """Return a whole number from ``low`` to ``high``, given as a Python or NumPy integer."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}.")
    if value < low:
        raise ValueError(f"{name} must be at least {low}, got {value}.")
    if value > high:
        raise ValueError(f"{name} must be at most {high:.0f}, got {value}.")
    return int(value)


def check_int(name: str, value: Any, low: int) -> None:
    """Refuse what is not a Python integer of at least ``low``: fields of a config hold those."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {shown(value)}.")
    if value < low:
        raise ValueError(f"{name} must be at least {low}, got {value}.")


def check_fields(config: object, **lowest: int) -> None:
    """Refuse a config whose named fields are not Python integers of at least the given values."""
    for name, low in lowest.items():
        check_int(name, getattr(config, name), low)


def check_flag(name: str, value: Any) -> bool:
    """Return True or False; refuse texts such as "no" and numbers, which Python would count as true."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {shown(value)}.")
    return bool(value)


def check_index(**arguments: Any) -> None:
    """Refuse pandas objects of different indexes: arrays are paired by position, and a reader would expect by label."""
    pandas = sys.modules.get("pandas")
    if pandas is None:
        return
    labelled = {name: x.index for name, x in arguments.items() if isinstance(x, (pandas.Series, pandas.DataFrame))}
    names = list(labelled)
    for name in names[1:]:
        if not labelled[name].equals(labelled[names[0]]):
            raise ValueError(
                f"{name} must have {names[0]}'s index, got another: give both one index, as {name}.reindex does, "
                "or arrays (to_numpy) to pair them by position."
            )


def one_index(function: Function) -> Function:
    """Make a function of several arrays refuse pandas arguments of different indexes (:func:`check_index`)."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        if "pandas" in sys.modules:
            with contextlib.suppress(TypeError):  # the call itself says what is wrong with its arguments
                check_index(**signature.bind(*args, **kwargs).arguments)
        return function(*args, **kwargs)

    return checked  # pyright: ignore[reportReturnType]
