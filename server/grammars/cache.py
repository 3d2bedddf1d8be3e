"""Forms that were compiled, kept for those who send them again.

Owns what makes two forms the same, and how many are kept. Knows neither the library nor processes. Nothing is shared
between tenants: by how soon an answer begins, one could tell what another has asked for.
"""

import json
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b

from engine.constraint import Constraint
from server.structure import CallForm, Structure

MAX_SIZE = 1 << 20
"""Of all that are kept. A form takes some forty times its size: 0.1 MiB and more, 2 MiB for an `enum` of 64 KiB."""
LEAST_SIZE = 4 << 10

Compiled = Callable[[], Constraint]
"""Makes a constraint for each answer, from what no answer changes."""


@dataclass(frozen=True, slots=True)
class Key:
    """A tenant's form: its text's digest, and how much of the cache it takes, in bytes of text."""

    tenant: str
    digest: bytes
    size: int


def key_of(structure: Structure, tenant: str) -> Key | None:
    """The same for all that is compiled to the same, whichever field of a body it comes from.

    None for a form that is nested too deeply to be written; no such form is compiled.
    """
    try:
        text = json.dumps([structure.kind, _content(structure)]).encode()
    except RecursionError:
        return None
    return Key(tenant, blake2b(text, digest_size=32).digest(), len(text) + LEAST_SIZE)


def _content(structure: Structure) -> object:
    """Of calls, all that their grammar is made of; the tokens of a markup are its base's."""
    form = structure.content
    if not isinstance(form, CallForm):
        return form
    functions = [(function.name, function.parameters, function.strict) for function in form.functions]
    text = None if form.text is None else (form.text.schema, form.text.strict)
    return form.markup.name, functions, form.forced, form.max_calls, text


class Cache:
    """Keeps forms of `max_size` together. The one that is let go is the longest unused of the tenant with the most, so
    that a flood of forms costs others none of theirs. Used on one thread.
    """

    def __init__(self, max_size: int = MAX_SIZE) -> None:
        self._max_size = max_size
        self._forms: OrderedDict[Key, Compiled] = OrderedDict()  # the longest unused first

    @property
    def size(self) -> int:
        return sum(key.size for key in self._forms)

    def get(self, key: Key | None) -> Compiled | None:
        if key is None or key not in self._forms:
            return None
        self._forms.move_to_end(key)
        return self._forms[key]

    def put(self, key: Key | None, form: Compiled) -> None:
        """One that is too large by itself is not kept."""
        if key is None or key.size > self._max_size:
            return
        self._forms[key] = form
        while self.size > self._max_size:
            del self._forms[self._least_missed()]

    def _least_missed(self) -> Key:
        used: Counter[str] = Counter()
        for key in self._forms:
            used[key.tenant] += key.size
        (fullest, _), *_ = used.most_common(1)
        return next(key for key in self._forms if key.tenant == fullest)
