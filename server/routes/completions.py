"""POST /v1/completions: text or token ids in, text out.

Owns the route and the layout of its choices. Knows nothing of chats.
"""

import time
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Depends
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from engine.sequence import Output
from server.answer import Chunk, Job, answer
from server.body import StrictRoute
from server.completion_body import CompletionBody, Prompt
from server.deps import PrincipalDep, RequireScope, ServicesDep, accepting, off_loop
from server.errors import BadRequest
from server.logprobs import CompletionLogprobs, join_blocks
from server.openapi import EVENTS
from server.ports import Tokenizer
from server.principal import Scope
from server.resolve import target
from server.sampling import RouteParams, check_tokens, requests_for, sampling_params

router = APIRouter(route_class=StrictRoute, dependencies=[Depends(accepting)], tags=["generation"])


@router.post("/v1/completions", dependencies=[Depends(RequireScope(Scope.INFER))], responses=EVENTS)
async def complete(body: CompletionBody, http: HttpRequest, services: ServicesDep, caller: PrincipalDep) -> Response:
    """Complete a prompt with the base or an adapter."""
    if len(body.prompt) * body.n > services.limits.max_choices:
        raise BadRequest(f"One request may ask for at most {services.limits.max_choices} choices.", "n")
    size = sum(len(prompt) for prompt in body.prompts if isinstance(prompt, str))
    prompts = await off_loop(size, _encode, services.tokenizer, body.prompts)
    echo_logprobs = body.logprobs if body.logprobs is not None or body.max_tokens > 0 else 0
    route = RouteParams(body.max_tokens, body.logprobs, echo_logprobs if body.echo else None)
    params = sampling_params(body, route, services.tokenizer.vocab_size)
    structure = body.structure()
    constraint = None if structure is None else await services.grammars.compile(structure, caller.tenant)
    key = body.sticks_to(http.state.request_id)
    chosen = await target(services.tenant_catalog, services.base_id, body.model, body.adapter_id, key)
    with chosen.released_on_error():
        requests = requests_for(
            http.state.request_id, prompts, params, body.n, chosen.adapter, caller.tenant, constraint
        )
        layout = CompletionLayout(services.tokenizer, body, prompts, http.state.request_id, chosen.model)
        return await answer(http, services, caller, chosen, Job(body, requests, layout, "prompt"))


def _encode(tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> list[list[int]]:
    encoded = []
    for prompt in prompts:
        if isinstance(prompt, str):
            ids = tokenizer.encode(prompt)
        else:
            ids = prompt
            check_tokens(ids, tokenizer.vocab_size, "prompt")
        if not ids:
            raise BadRequest("The prompt is empty, and this base has no begin-of-text token to start from.", "prompt")
        encoded.append(ids)
    return encoded


class CompletionLayout:
    """OpenAI's `text_completion` objects."""

    def __init__(
        self, tokenizer: Tokenizer, body: CompletionBody, prompts: Sequence[Sequence[int]], id: str, model: str
    ) -> None:
        self._tokenizer, self._body, self._prompts = tokenizer, body, prompts
        self._frame = {"id": f"cmpl-{id}", "object": "text_completion", "created": int(time.time()), "model": model}
        self._logprobs = [CompletionLogprobs(tokenizer) for _ in range(len(prompts) * body.n)]
        self._begun: set[int] = set()

    def opening(self, index: int) -> list[Chunk]:
        return []

    def increment(self, index: int, output: Output) -> list[Chunk]:
        silent = not (output.text or output.logprobs or output.finish_reason)
        first = index not in self._begun and self._body.echo
        if silent and not first and not (self._body.return_token_ids and output.token_ids):
            return []
        return [self.whole(index, output)]

    def whole(self, index: int, output: Output) -> Chunk:
        first = index not in self._begun
        self._begun.add(index)
        echoed = self._echo(index) if first and self._body.echo else ""
        choice: Chunk = {
            "index": index,
            "text": echoed + output.text,
            "logprobs": self._block(index, output, echoed) if self._body.logprobs is not None else None,
            "finish_reason": output.finish_reason,
            "stop_reason": output.stop_reason,
        }
        if self._body.return_token_ids:
            choice["token_ids"] = list(output.token_ids)
            choice["prompt_token_ids"] = list(self._prompts[index // self._body.n]) if first else None
        return choice

    def frame(self, choices: list[Chunk], streamed: bool) -> Chunk:
        return self._frame | {"choices": choices}

    def _echo(self, index: int) -> str:
        prompt = self._body.prompts[index // self._body.n]
        return prompt if isinstance(prompt, str) else self._tokenizer.decode(prompt)

    def _block(self, index: int, output: Output, echoed: str) -> dict[str, Any]:
        logprobs = self._logprobs[index]
        if not echoed or output.prompt_logprobs is None:
            logprobs.skip(len(echoed))
            return logprobs.generated(output.logprobs)
        prompt = logprobs.prompt(echoed, self._prompts[index // self._body.n], output.prompt_logprobs)
        return join_blocks(prompt, logprobs.generated(output.logprobs))
