"""The version of the installed distribution. Knows its name; knows nothing else."""

from importlib import metadata


def version() -> str:
    """The installed version, or `0` where the tree runs without having been installed."""
    try:
        return metadata.version("rootstock")
    except metadata.PackageNotFoundError:
        return "0"
