"""The compiled kernels for a device, or none.

Owns the decision that their absence is no fault, and that it is told. Knows no models.
"""

from pathlib import Path

from loader.progress import Progress, ignore
from native.errors import Unavailable
from native.kernels import Kernels, load

FOLDER = "kernels"


def kernels_for(device: str, data_dir: Path, progress: Progress = ignore) -> Kernels | None:
    """The kernels, compiled once under `data_dir`, if `device` means the CPU and they can be had there."""
    from loader.base import device_named  # torch's import is asked for by whoever loads a base anyway

    if device_named(device).type != "cpu":
        return None
    try:
        progress("preparing the CPU kernels", None)
        return load(data_dir / FOLDER)
    except Unavailable as reason:
        progress(f"going on without compiled CPU kernels, slower: {reason}", None)
        return None
