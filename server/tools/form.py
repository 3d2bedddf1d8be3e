"""From the functions that a body offers to the form that its answer must have, for one base's markup.

Owns what goes together and what does not. Knows the tokenizer by its port; knows no grammars.
"""

from collections.abc import Mapping, Sequence

from server.errors import BadRequest
from server.grammars.bounds import TooLarge, check_schema
from server.ports import Tokenizer
from server.structure import CallForm, Part, Structure
from server.tools.fields import Offer
from server.tools.markup import Function, Markup
from server.tools.parameters import Parameter, Unwritable, parameters


def call_form(offer: Offer, tokenizer: Tokenizer, asked: Structure | None) -> CallForm:
    """`asked` is the form that the body asks for besides; it is the text's. Large schemas take a while.

    Raises BadRequest.
    """
    markup = tokenizer.markup
    if markup is None:
        raise BadRequest(
            "`tools` are not supported with this base: how its chat template spells calls is not known here. Describe "
            "the functions in a message, or start the server with --tool-call-parser.",
            "tools",
            "unsupported_field",
        )
    checked = {function.name: _checked(function, markup) for function in offer.functions}
    max_calls = markup.max_calls if offer.parallel else 1
    ids = {text: tokenizer.special_id(text) for text in markup.marks}
    tokens = {text: id for text, id in ids.items() if id is not None}
    text = None if asked is None or offer.forced else _text(asked, bool(markup.begin))
    elements = {function.name: checked[function.name] for function in offer.callable}
    return CallForm(markup, offer.callable, offer.forced, max_calls, text, tokens, elements)


def shown(form: CallForm | None) -> Mapping[int, str]:
    """The special tokens without which nobody could see in an answer's text that it calls."""
    return {} if form is None else {id: text for text, id in form.tokens.items()}


def _checked(function: Function, markup: Markup) -> Sequence[Parameter]:
    """Its parameters, where the markup has an element for each.

    Raises BadRequest for a schema that is too large to be laid out in a prompt, or that the markup cannot write.
    """
    try:
        check_schema(function.parameters or {})
    except TooLarge as error:
        raise BadRequest(f"`{function.field}` cannot be read: {error}. Send less.", function.field) from None
    try:
        return parameters(function) if markup.elements else ()
    except Unwritable as error:
        message = (
            f"`{function.field}` cannot be kept to: {error}. Send named parameters, each with a schema of its own."
        )
        raise BadRequest(message, function.field, "grammar_invalid") from None


def _text(asked: Structure, begins_otherwise: bool) -> Part:
    """The form of an answer that does not call. Raises BadRequest for one that cannot be told from calls."""
    if isinstance(asked.content, Mapping) and begins_otherwise:
        return Part(asked.field, asked.content)
    why = "JSON alone can be told from calls" if begins_otherwise else "this base's calls are JSON too"
    raise BadRequest(
        f"`{asked.field}` does not go with `tools` here: {why}. Set `tool_choice` to `none` or `required`.", asked.field
    )
