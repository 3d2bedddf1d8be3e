"""The engine's errors. It knows nothing of HTTP; `server/errors.py` maps these to status codes.

EngineError
├── PromptTooLong        the prompt and max_tokens do not fit the context or the KV cache
├── QueueFull            the waiting queue is at its bound; try again later
├── EngineStopped        the engine is draining or has stopped
├── EngineRestarting     the engine has failed, and the next one is being made
├── AdapterTooLarge      the adapter alone exceeds the device budget
├── DeviceQuotaTooSmall  the adapter alone exceeds its tenant's quota of it
├── ConstraintFailed     a request's constraint cannot say what may come next
└── MergeRefused         another adapter is merged already
"""


class EngineError(Exception):
    """Root of everything the engine raises on purpose."""


class PromptTooLong(EngineError):
    def __init__(self, prompt_tokens: int, max_tokens: int, limit: int) -> None:
        self.prompt_tokens, self.max_tokens, self.limit = prompt_tokens, max_tokens, limit
        super().__init__(
            f"This model's maximum context length is {limit} tokens, but {prompt_tokens + max_tokens} were requested "
            f"({prompt_tokens} in the prompt, {max_tokens} for the completion). Shorten the prompt or lower max_tokens."
        )


class QueueFull(EngineError):
    def __init__(self, waiting: int) -> None:
        super().__init__(
            f"{waiting} requests are waiting already. Retry later, or start the server with a larger --max-waiting."
        )


class EngineStopped(EngineError):
    pass


class EngineRestarting(EngineError):
    pass


class AdapterTooLarge(EngineError):
    pass


class DeviceQuotaTooSmall(EngineError):
    def __init__(self, size: int, quota: int | None) -> None:
        super().__init__(
            f"This adapter takes {size} bytes on the device, where the tenant's adapters may take {quota or 0}. "
            "Use a smaller one, or ask the operator for a larger quota `device_bytes`."
        )


class ConstraintFailed(EngineError):
    """Ends its own request, within the engine."""


class MergeRefused(EngineError):
    pass
