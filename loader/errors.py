"""The loader's errors. It knows nothing of HTTP; the command line prints these as they are.

LoaderError
├── BaseNotFound      no such directory, file, wheel or hub id; or a file is missing from the base
├── HubOffline        the hub is needed and cannot be reached
├── UnsafeWeights     the base is pickled, or needs code of its own to run
├── UnsupportedBase   transformers or this engine cannot serve this architecture or precision
└── DoesNotFit        base, KV cache and adapters need more memory than there is
"""


class LoaderError(Exception):
    """Root of everything the loader raises on purpose."""


class BaseNotFound(LoaderError):
    pass


class HubOffline(LoaderError):
    pass


class UnsafeWeights(LoaderError):
    pass


class UnsupportedBase(LoaderError):
    pass


class DoesNotFit(LoaderError):
    def __init__(self, message: str, *, needed: int, available: int) -> None:
        self.needed, self.available = needed, available
        super().__init__(message)
