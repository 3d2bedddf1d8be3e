"""The error that ends a measurement with a message instead of a traceback.

Owns the one error of the benchmarks; `__main__.py` prints it.
"""


class BenchError(RuntimeError):
    """A target, or something that measuring needs, failed; the text says what."""
