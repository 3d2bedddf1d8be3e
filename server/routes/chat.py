"""POST /v1/chat/completions: turns in, the assistant's turn out, through the base's own chat template.

Owns the route. Knows nothing of plain completions.
"""

import sys

from fastapi import APIRouter, Depends
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from server.answer import Job, answer
from server.body import StrictRoute
from server.chat_body import ChatBody
from server.chat_layout import ChatLayout
from server.chat_messages import messages_of
from server.deps import PrincipalDep, RequireScope, ServicesDep, accepting, off_loop
from server.errors import BadRequest
from server.openapi import EVENTS
from server.ports import Tokenizer
from server.principal import Scope
from server.resolve import target
from server.sampling import RouteParams, requests_for, sampling_params
from server.structure import CallForm, Structure
from server.tools.form import call_form, shown

router = APIRouter(route_class=StrictRoute, dependencies=[Depends(accepting)], tags=["generation"])


@router.post("/v1/chat/completions", dependencies=[Depends(RequireScope(Scope.INFER))], responses=EVENTS)
async def chat(body: ChatBody, http: HttpRequest, services: ServicesDep, caller: PrincipalDep) -> Response:
    """Continue a conversation with the base or an adapter."""
    if body.n > services.limits.max_choices:
        raise BadRequest(f"One request may ask for at most {services.limits.max_choices} choices.", "n")
    prompt, form = await off_loop(_size(body), _prepared, services.tokenizer, body)
    room = services.limits.max_model_len - len(prompt)
    most = services.meter.quotas.tokens_a_minute(caller.tenant)
    if most is not None:  # what is more than that would be refused for ever, and clients mostly name no length
        room = min(room, (most - len(prompt)) // body.n)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    params = sampling_params(
        body, RouteParams(body.token_limit or max(room, 1), logprobs), services.tokenizer.vocab_size
    )
    structure = body.structure() if form is None else Structure("tools", "calls", form)
    constraint = None if structure is None else await services.grammars.compile(structure, caller.tenant)
    key = body.sticks_to(http.state.request_id)
    chosen = await target(services.tenant_catalog, services.base_id, body.model, body.adapter_id, key)
    with chosen.released_on_error():
        requests = requests_for(
            http.state.request_id, [prompt], params, body.n, chosen.adapter, caller.tenant, constraint, shown(form)
        )
        layout = ChatLayout(services.tokenizer, body, prompt, http.state.request_id, chosen.model, form)
        return await answer(http, services, caller, chosen, Job(body, requests, layout, "messages"))


def _size(body: ChatBody) -> int:
    """About how much there is to lay out: characters of text, or more than any where there is JSON in it."""
    calling = body.tools or any(turn.calls for turn in body.messages)
    return sys.maxsize if calling else sum(len(turn.text) for turn in body.messages)


def _prepared(tokenizer: Tokenizer, body: ChatBody) -> tuple[list[int], CallForm | None]:
    """The prompt, and the form of an answer that may call functions."""
    offer = body.offer()
    form = None if offer is None else call_form(offer, tokenizer, body.structure())
    return tokenizer.encode_chat(messages_of(body.messages), () if offer is None else offer.functions), form
