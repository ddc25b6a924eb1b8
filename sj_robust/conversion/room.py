"""How much memory is free, so that what would not fit is refused in a line before the system ends
the process without one."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

_MEMINFO, _SELF = Path("/proc/meminfo"), Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")


def free_bytes() -> int | None:
    """Of the machine, swap included, or what is left to the control group of this process where
    that is less; None where the system does not say."""
    try:
        lines = dict(line.split(":", 1) for line in _lines(_MEMINFO))
        free = sum(int(lines[key].split()[0]) << 10 for key in ("MemAvailable", "SwapFree"))
    except (OSError, KeyError, ValueError, IndexError):
        return None
    with suppress(
        OSError, ValueError, IndexError, StopIteration
    ):  # no limit: no number, or no file
        group = next(line.split(":", 2)[2] for line in _lines(_SELF) if line[:3] == "0::")
        folder = _GROUPS / group.lstrip("/")
        limit, used = (int(_lines(folder / name)[0]) for name in ("memory.max", "memory.current"))
        free = min(free, limit - used)
    return free


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()
