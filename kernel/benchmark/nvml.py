"""Power, clock and what holds the clock down, of the GPU that torch uses, as NVIDIA's management library has them.

By ctypes on the library that comes with the driver, which is the same everywhere: Python's packages for it are not.
"""

from __future__ import annotations

import ctypes
import time
from typing import Any, NamedTuple

import torch

__all__ = ["POWER_CAP", "SLOWED", "Meter", "Sample"]

POWER_CAP = 0x4  # the reason of a clock that software holds down to stay within the power limit
SLOWED = 0x8 | 0x20 | 0x40 | 0x80  # hardware, heat by software and by hardware, the power supply
_LIBRARY = "libnvidia-ml.so.1"
_SM = 1  # the clock of the multiprocessors
_INSTANT = 186  # the field of power now; nvmlDeviceGetPowerUsage is a mean over the last second on Hopper
_REASONS = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")  # new, old drivers


class Sample(NamedTuple):
    """One look at a device."""

    seconds: float  # of the host's clock
    watts: float
    mhz: float
    reasons: int  # bits of what holds the clock down
    joules: float | None  # of a counter, which goes on in steps of about 0.1 s; None where there is none


class _Field(ctypes.Structure):
    """``nvmlFieldValue_t``, of a value that is an unsigned int."""

    _fields_ = (
        ("field", ctypes.c_uint),
        ("scope", ctypes.c_uint),
        ("timestamp", ctypes.c_longlong),
        ("latency", ctypes.c_longlong),
        ("kind", ctypes.c_int),
        ("status", ctypes.c_int),
        ("value", ctypes.c_uint),
        ("rest", ctypes.c_uint),
    )


class Meter:
    """Reads the GPU that is torch's current one, found by its UUID whatever CUDA_VISIBLE_DEVICES says.

    Raises:
        OSError: If the library is not there, or does not know the device or cannot read its power, clock or reasons.

    Attributes:
        limit_watts: The power limit in force; None where it is not told.
        most_mhz: The highest clock of the multiprocessors; None where it is not told.
    """

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(_LIBRARY)
        except OSError as error:
            raise OSError(f"power is read by {_LIBRARY}, which comes with NVIDIA's driver: {error}") from error
        self._library.nvmlErrorString.restype = ctypes.c_char_p
        self._call("nvmlInit_v2")
        uuid = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
        self._device = ctypes.c_void_p()
        name = f"GPU-{uuid.removeprefix('GPU-')}".encode()
        self._call("nvmlDeviceGetHandleByUUID", name, ctypes.byref(self._device))
        self._reasons = next((name for name in _REASONS if hasattr(self._library, name)), _REASONS[-1])
        self._has_instant = self._instant() is not None
        limit = self._optional("nvmlDeviceGetEnforcedPowerLimit", ctypes.c_uint)
        self.limit_watts = None if limit is None else limit / 1e3
        self.most_mhz = self._optional("nvmlDeviceGetMaxClockInfo", ctypes.c_uint, _SM)
        self.read()  # what cannot be read is told before anything is measured

    def read(self) -> Sample:
        """Look once."""
        watts = self._instant() if self._has_instant else None
        if watts is None:
            watts = self._number("nvmlDeviceGetPowerUsage", ctypes.c_uint) / 1e3
        mhz = self._number("nvmlDeviceGetClockInfo", ctypes.c_uint, _SM)
        reasons = self._number(self._reasons, ctypes.c_ulonglong)
        energy = self._optional("nvmlDeviceGetTotalEnergyConsumption", ctypes.c_ulonglong)
        return Sample(time.perf_counter(), watts, mhz, reasons, None if energy is None else energy / 1e3)

    def _instant(self) -> float | None:
        field = _Field(field=_INSTANT)
        try:
            self._call("nvmlDeviceGetFieldValues", self._device, ctypes.c_int(1), ctypes.byref(field))
        except OSError:
            return None
        return None if field.status or not field.value else field.value / 1e3

    def _optional(self, function: str, kind: Any, *given: int) -> int | None:
        """A number that not every device has."""
        try:
            return self._number(function, kind, *given)
        except OSError:
            return None

    def _number(self, function: str, kind: Any, *given: int) -> int:
        found = kind()
        self._call(function, self._device, *(ctypes.c_int(value) for value in given), ctypes.byref(found))
        return found.value

    def _call(self, function: str, *given: Any) -> None:
        if not hasattr(self._library, function):
            raise OSError(f"{_LIBRARY} has no {function}.")
        if status := getattr(self._library, function)(*given):
            raise OSError(f"{function} of {_LIBRARY} failed: {self._library.nvmlErrorString(status).decode()}.")
