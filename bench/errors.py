"""The error that ends a measurement with a message instead of a traceback, and the words for what else may end it.

Owns the one error of the benchmarks; `__main__.py` prints it.
"""

import httpx


class BenchError(RuntimeError):
    """A target, or something that measuring needs, failed; the text says what."""


def words(error: Exception) -> str | None:
    """What a person is told of an error that lies outside of the bench; None where it is a bug of ours."""
    if isinstance(error, BenchError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("bench"):
        return f"{error.name} is missing, which measuring needs and serving does not. Run `make setup` first."
    if isinstance(error, httpx.HTTPStatusError):
        status, url = error.response.status_code, error.request.url
        return f"{url} answered {status}. Is that server of the kind that is measured, and does it ask for a key?"
    if isinstance(error, httpx.TransportError):
        url = error.request.url.copy_with(raw_path=b"/")
        return (
            f"The server at {url} does not answer ({str(error) or type(error).__name__}). Start it, or correct the URL."
        )
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}."
    return None
