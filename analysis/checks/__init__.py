"""What every room asks of its arguments: each check returns what it was given, ready to compute with, or says why not.

An error names the argument, what is allowed and what came.
"""

from ._arguments import (
    as_numpy,
    check_choice,
    check_count,
    check_fields,
    check_flag,
    check_index,
    check_int,
    converted,
    one_index,
    shown,
)  # fmt: skip
from ._arrays import (
    check_losses,
    check_number,
    check_numbers,
    distribution,
    interval,
    one_whole,
    real,
    refuse_probabilities,
    require_broadcast,
    shares,
    softcap_or_inf,
    whole,
)  # fmt: skip
from ._extras import pip_install

__all__ = [
    "as_numpy", "check_choice", "check_count", "check_fields", "check_flag", "check_index", "check_int", "check_losses",
    "check_number", "check_numbers", "converted", "distribution", "interval", "one_index", "one_whole",
    "pip_install", "real", "refuse_probabilities", "require_broadcast", "shares", "shown", "softcap_or_inf", "whole",
]  # fmt: skip
