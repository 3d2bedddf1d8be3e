"""Whether a request without a key may be a web page's, which its reader knows nothing of.

Owns the look at Host and Origin on servers that ask for no keys. Every page may send forms to its reader's own machine,
and may have its own name point there (DNS rebinding); but browsers tell the page in Origin and the name in Host. Knows
neither keys nor routes.
"""

import ipaddress
import re
from dataclasses import dataclass

from server.errors import NO_RETRY, ApiError

_HOST = re.compile(r"([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([0-9]*))?")
_PORTS = {"http": "80", "https": "443"}
_KEYS = "make keys and send one (`rootstock keys create`)"


class HostRefused(ApiError):
    """What was sent is not repeated; the operator knows the name that was meant."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(403, message, type="permission_error", code=code, headers=NO_RETRY)


@dataclass(frozen=True, slots=True)
class HostCheck:
    """`host` is what the server was told to listen on. Requests to the `trusted` names are let in, and pages of them.

    With `any_host`, the operator has opened the server to other machines, which know it by names of their own.
    """

    host: str = ""
    trusted: tuple[str, ...] = ()
    any_host: bool = False

    def check(self, host: str, origin: str | None) -> None:
        """Raises HostRefused, given these headers' values. Whatever is no browser sends no Origin and is left alone."""
        if not self.any_host and not self._ours(_split(host)[0]):
            raise HostRefused(
                "host_refused",
                "This server asks for no keys, and answers to names of its own machine only, such as localhost. Use "
                f"one of them, {_KEYS}, or start it with --trusted-host and the name that you use.",
            )
        if origin is not None and not self._same(_split(host), origin):
            raise HostRefused(
                "origin_refused",
                "This server asks for no keys, and lets no web pages of other origins in. Start it with --trusted-host "
                f"and the name of the page's host, or {_KEYS}.",
            )

    def _ours(self, name: str) -> bool:
        return name in ("localhost", self.host.lower(), *self.trusted) or _is_loopback(name)

    def _same(self, host: tuple[str, str], origin: str) -> bool:
        """An origin is a scheme, a name and a port, or `null`."""
        scheme, _, rest = origin.lower().partition("://")
        name, port = _split(rest)
        default = _PORTS.get(scheme, "")
        return bool(name) and (name in self.trusted or (name, port or default) == (host[0], host[1] or default))


def _split(host: str) -> tuple[str, str]:
    """Name and port; of what is neither, two empty texts."""
    form = _HOST.fullmatch(host.lower())
    return ("", "") if form is None else (form[1], form[2] or "")


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
