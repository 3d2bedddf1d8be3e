"""POST /v1/chat/completions: turns in, the assistant's turn out, through the base's own chat template.

Owns the route and the layout of its choices. Knows nothing of plain completions.
"""

import time
from collections.abc import Sequence

from fastapi import APIRouter, Depends
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from engine.sequence import Output
from server.answer import Chunk, Job, answer
from server.body import StrictRoute
from server.chat_body import ChatBody
from server.deps import PrincipalDep, RequireScope, ServicesDep, accepting, off_loop
from server.errors import BadRequest
from server.logprobs import chat_logprobs
from server.openapi import EVENTS
from server.ports import Tokenizer
from server.principal import Scope
from server.resolve import target
from server.sampling import RouteParams, requests_for, sampling_params

router = APIRouter(route_class=StrictRoute, dependencies=[Depends(accepting)], tags=["generation"])


@router.post("/v1/chat/completions", dependencies=[Depends(RequireScope(Scope.INFER))], responses=EVENTS)
async def chat(body: ChatBody, http: HttpRequest, services: ServicesDep, caller: PrincipalDep) -> Response:
    """Continue a conversation with the base or an adapter."""
    if body.n > services.limits.max_choices:
        raise BadRequest(f"One request may ask for at most {services.limits.max_choices} choices.", "n")
    messages = [message.message() for message in body.messages]
    size = sum(len(message.content) for message in messages)
    prompt = await off_loop(size, services.tokenizer.encode_chat, messages)
    room = services.limits.max_model_len - len(prompt)
    most = services.meter.quotas.tokens_a_minute(caller.tenant)
    if most is not None:  # what is more than that would be refused for ever, and clients mostly name no length
        room = min(room, (most - len(prompt)) // body.n)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    params = sampling_params(
        body, RouteParams(body.token_limit or max(room, 1), logprobs), services.tokenizer.vocab_size
    )
    structure = body.structure()
    constraint = None if structure is None else await services.grammars.compile(structure, caller.tenant)
    key = body.sticks_to(http.state.request_id)
    chosen = await target(services.tenant_catalog, services.base_id, body.model, body.adapter_id, key)
    with chosen.released_on_error():
        requests = requests_for(
            http.state.request_id, [prompt], params, body.n, chosen.adapter, caller.tenant, constraint
        )
        layout = ChatLayout(services.tokenizer, body, prompt, http.state.request_id, chosen.model)
        return await answer(http, services, caller, chosen, Job(body, requests, layout, "messages"))


class ChatLayout:
    """OpenAI's `chat.completion` and `chat.completion.chunk` objects."""

    def __init__(self, tokenizer: Tokenizer, body: ChatBody, prompt: Sequence[int], id: str, model: str) -> None:
        self._tokenizer, self._body, self._prompt = tokenizer, body, prompt
        self._frame = {"id": f"chatcmpl-{id}", "created": int(time.time()), "model": model}
        self._told_prompt = not body.return_token_ids

    def opening(self, index: int) -> list[Chunk]:
        return [_choice(index, {"role": "assistant", "content": ""})]

    def increment(self, index: int, output: Output) -> list[Chunk]:
        choices = []
        if output.text or output.logprobs or (self._body.return_token_ids and output.token_ids):
            choices.append(_choice(index, {"content": output.text}) | self._extras(output))
        if output.finish_reason is not None:
            choices.append(_choice(index, {}, output.finish_reason) | {"stop_reason": output.stop_reason})
        return choices

    def whole(self, index: int, output: Output) -> Chunk:
        message = {"role": "assistant", "content": output.text, "refusal": None}
        choice = {"index": index, "message": message, "finish_reason": output.finish_reason}
        return choice | {"stop_reason": output.stop_reason} | self._extras(output)

    def frame(self, choices: list[Chunk], streamed: bool) -> Chunk:
        kind = "chat.completion.chunk" if streamed else "chat.completion"
        frame = self._frame | {"object": kind, "choices": choices}
        if not self._told_prompt:
            self._told_prompt = True
            frame["prompt_token_ids"] = list(self._prompt)
        return frame

    def _extras(self, output: Output) -> Chunk:
        extras: Chunk = {"logprobs": chat_logprobs(self._tokenizer, output.logprobs) if self._body.logprobs else None}
        if self._body.return_token_ids:
            extras["token_ids"] = list(output.token_ids)
        return extras


def _choice(index: int, delta: Chunk, finish_reason: str | None = None) -> Chunk:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
