"""The embedded base, converted once per clone and shared by every test that needs a real model."""

from pathlib import Path

from loader.source import Source, resolve

DATA = Path(__file__).parents[2] / "data"


def embedded_source() -> Source:
    """The embedded base under the clone's ignored `data/`; the first call on a machine dequantizes it."""
    return resolve("embedded", DATA)
