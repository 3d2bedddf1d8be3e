"""What ends a measurement with a message rather than a traceback.

Owns the one error of the benchmarks; `__main__.py` tells it.
"""


class BenchError(RuntimeError):
    """Something that is measured, or needed for it, did not do its part; the text says what."""
