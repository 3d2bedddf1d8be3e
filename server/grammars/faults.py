"""The grammar library's complaints in words for clients, who are told what is wrong and never what they sent.

Knows the library's messages, and no more of it.
"""

import re

_CAUSE = re.compile(r"^error: (.+)", re.MULTILINE)
_PLACE = re.compile(r"^(?:at )?\d+\(\d+\): ")
_GBNF = re.compile(r"^Failed to convert the grammar from GBNF to Lark: (.*?)(?:, '.*)?$", re.DOTALL)
_LIMITS = ("fuel", "too many", "too big", "too large", "too complex", "too long", "current row", "panic", "recursion")
KEYWORDS = frozenset(
    re.findall(
        r"\S+",
        """$ref $defs allOf anyOf oneOf not if then else const enum type format pattern items prefixItems contains
        uniqueItems minItems maxItems properties required additionalProperties patternProperties propertyNames
        minProperties maxProperties dependentRequired dependentSchemas unevaluatedProperties unevaluatedItems minLength
        maxLength minimum maximum exclusiveMinimum exclusiveMaximum multipleOf object array string number integer
        boolean null uri url iri idn reference template json pointer relative regex password binary byte date time
        duration email hostname ipv4 ipv6 uuid""",
    )
)


def reason(fault: str, sent: str) -> str:
    """A complaint in one line. Words of `sent` are left out, except JSON Schema's own."""
    if "NoExtension" in fault or "no token fits" in fault:
        return "no text fits it"
    if "special token" in fault or "Token range" in fault:
        return "it names tokens, where a grammar is of text"
    if any(word in fault.lower() for word in _LIMITS):
        return "it is too large or too ambiguous"
    cause, gbnf = _CAUSE.search(fault), _GBNF.match(fault)
    line = cause[1] if cause else gbnf[1] if gbnf else fault.partition("\n")[0]
    line = _PLACE.sub("", line).rstrip(". ")[:200]
    words = frozenset(re.findall(r"\w+", sent))

    def kept(match: re.Match[str]) -> str:
        word = match[0]
        was_sent = word in words or (len(word) > 3 and word in sent)
        return "…" if was_sent and word not in KEYWORDS else word

    return re.sub(r"\$?\w+", kept, line) or "it cannot be read"
