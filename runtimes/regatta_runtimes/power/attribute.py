"""One number of one sysfs file, with the reason when there is none. Bounded; may block as long as the driver does."""

from __future__ import annotations

from pathlib import Path

from regatta_runtimes.errors import SensorFault

__all__ = ["whole_number"]

_LIMIT_BYTES = 64
_FAR_OFF = 10**15  # a 64-bit counter of microjoules stays below; a "number" of a thousand digits is none


def whole_number(path: Path) -> int:
    """Return the integer in the file.

    Raises:
        SensorFault: when the file is gone, closed to us, or holds something else.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_LIMIT_BYTES).strip()
    except PermissionError as err:
        raise SensorFault(f"{path} cannot be read: only root may") from err
    except FileNotFoundError as err:
        raise SensorFault(f"{path} is gone") from err
    except OSError as err:  # EIO, ENODATA, ETIMEDOUT: the bus or the chip
        raise SensorFault(f"{path} cannot be read: {err.strerror}") from err
    try:
        number = int(text)
    except ValueError as err:
        raise SensorFault(f"{path} says {text[:30].decode('ascii', 'replace')!r}, which is no number") from err
    if abs(number) > _FAR_OFF:
        raise SensorFault(f"{path} says {number}, which is beyond all measure")
    return number
