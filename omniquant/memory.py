"""How much memory this process has needed, and sizes as people write them."""

from __future__ import annotations

import re
import sys

from omniquant.errors import ConfigError

# Of activations; enough for 32 windows of 512 tokens of a model of 70 billion parameters.
DEFAULT_MEMORY = "4GiB"

_UNITS = {"": 1, "B": 1} | {
    f"{letter}{middle}B": base**power
    for middle, base in (("i", 1024), ("", 1000))
    for power, letter in enumerate("KMGT", 1)
}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)\s*([A-Za-z]*)")


def peak_rss_mib() -> float:
    """Return the largest resident size of this process so far in MiB, 0.0 where the system does not say.

    Resident are pages of mapped files too: weights as they are read, activations in scratch files.
    """
    # The kernel's own note of this address space. What getrusage says is inherited from the parent instead if
    # that was larger when it started us.
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return round(int(line.split()[1]) / 1024, 1)
    except (OSError, ValueError, IndexError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1)


def parse_bytes(name: str, size: int | str) -> int:
    """Return a number of bytes: an integer, or a text such as "4GiB", "500 MB" or "1.5GiB".

    Raises
    ------
    ConfigError
        If it is no size; `name` says whose.
    """
    if isinstance(size, int) and not isinstance(size, bool) and size >= 0:
        return size
    match = _SIZE.fullmatch(size.strip()) if isinstance(size, str) else None
    units = {unit.lower(): factor for unit, factor in _UNITS.items()}
    factor = units.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise ConfigError(f"{name} {size!r} is no size such as 4GiB, 500MB or a number of bytes")
    return int(float(match[1]) * factor)


def shown_bytes(size: int) -> str:
    """Return a size for people: "4.0 GiB"."""
    value, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
