"""The errors of a machine without compiled kernels. Knows nothing else."""


class Unavailable(Exception):
    """The kernels cannot be had on this machine; the message says why. Everything works without them, slower."""


class NoTiles(Unavailable):
    """The processor has AMX's tiles, but the operating system does not let this process use them."""
