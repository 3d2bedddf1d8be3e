"""A schema as the grammar library is given it.

Owns what is put in and left out for that. Knows no grammar library, and neither fields nor tokens.
"""

import json
from collections.abc import Mapping
from typing import Any

from server.grammars.bounds import check_schema
from server.grammars.lenient import lenient
from server.grammars.vacuous import without_vacuous

SPACE = {"x-guidance": {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,32}"}}
"""Between two parts of JSON, unless a schema brings an `x-guidance` of its own.

If it had no end, small models would fill answers with nothing else.
"""


def kept_schema(schema: Mapping[str, Any], strict: bool = True) -> Mapping[str, Any]:
    """Unless `strict`, of what can be kept to.

    Raises TooLarge for one of too many values or levels; unless `strict`, Malformed.
    """
    check_schema(schema)
    asked = SPACE | without_vacuous(schema)
    return asked if strict else lenient(asked)


def schema_text(schema: Mapping[str, Any], strict: bool = True) -> str:
    """As `kept_schema`, which raises the same."""
    return json.dumps(kept_schema(schema, strict), ensure_ascii=False)
