"""Byte counts as people read them, and how much memory this process may still take.

Owns formatting and the reading of /proc and cgroup files. Imports no torch.
"""

from pathlib import Path


def format_bytes(count: int) -> str:
    """`count` in the largest binary unit that leaves at least 1: "257 MiB", "1.2 GiB"."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if size >= 100 or unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def available_host_bytes(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What the kernel says a new process could use without swapping, within the container's limit.

    None where neither is known (no Linux).
    """
    bounds = [bound for bound in (_meminfo(proc / "meminfo"), _cgroup(cgroup)) if bound is not None]
    return min(bounds, default=None)


def _meminfo(path: Path) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _cgroup(root: Path) -> int | None:
    """Limit minus use. The page cache counts as used, but the kernel gives it back first, so it is not counted."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            bound = (root / limit).read_text().strip()
            if bound == "max":
                return None
            return int(bound) - int((root / used).read_text()) + _reclaimable((root / limit).parent / "memory.stat")
        except (OSError, ValueError):
            continue
    return None


def _reclaimable(stat: Path) -> int:
    try:
        fields = dict(line.split() for line in stat.read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return int(fields.get("inactive_file", fields.get("total_inactive_file", "0")))
