"""What can be wrong with keys, each with a message that says what to do. None of it is ever told to an HTTP client.

KeysError
├── UnknownKey      no key has this id
├── KeyNotLive      it was revoked, has expired, or has been rotated already
├── PepperUnusable  the pepper is missing, too short, or cannot be read
└── Unguarded       the address can be reached by others, and nobody would be asked for a key
"""


class KeysError(Exception):
    """Root of everything that this package raises on purpose."""


class UnknownKey(KeysError):
    pass


class KeyNotLive(KeysError):
    pass


class PepperUnusable(KeysError):
    pass


class Unguarded(KeysError):
    pass
