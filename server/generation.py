"""Running one HTTP request's sequences: submitted together, read as one stream, aborted together.

Owns the fan-out of `n` and of several prompts, and the rule that whoever stops listening stops the
engine. Knows the worker's contract; knows no response format.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence

from engine.errors import EngineStopped
from engine.sequence import FinishReason, Output, Request
from server.errors import GenerationFailed, ReaderTooSlow
from server.ports import OutputStream, Worker

Indexed = tuple[int, Output]


class Generation:
    """Several requests in flight as one stream of (index, Output). Closing it aborts what has not finished."""

    def __init__(self, streams: Sequence[OutputStream]) -> None:
        self._streams = streams
        self._queue: asyncio.Queue[Indexed | BaseException | None] = asyncio.Queue(maxsize=max(16, len(streams)))
        self._pumps: list[asyncio.Task[None]] = []
        self._open = len(streams)
        self._tokens = 0

    @classmethod
    async def start(cls, worker: Worker, requests: Sequence[Request]) -> "Generation":
        """Submit all of `requests` or, when one is refused, none."""
        # Together, so that all are queued before the next step; one after the other, each would wait for a step.
        submitting = [asyncio.create_task(worker.submit(request)) for request in requests]
        try:
            submitted = await asyncio.gather(*submitting, return_exceptions=True)
        except asyncio.CancelledError:  # all have ended by now, and nobody is told any more of those that were accepted
            accepted = [each for each in submitting if not each.cancelled() and each.exception() is None]
            await _close_all([each.result() for each in accepted])
            raise
        streams = [each for each in submitted if not isinstance(each, BaseException)]
        refused = next((each for each in submitted if isinstance(each, BaseException)), None)
        if refused is not None:
            await _close_all(streams)
            raise refused
        return cls(streams)

    async def __aiter__(self) -> AsyncIterator[Indexed]:
        """Outputs as they come. Raises GenerationFailed when the engine ends a request with an error, and ReaderTooSlow
        when it aborted one because too much was left unread."""
        if len(self._streams) == 1:
            async for output in self._whole(self._streams[0]):
                yield 0, output
            return
        self._pumps = [asyncio.create_task(self._pump(index, stream)) for index, stream in enumerate(self._streams)]
        while self._open:
            item = await self._queue.get()
            if item is None:
                self._open -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield item

    @property
    def tokens(self) -> int:
        """How many tokens the engine has handed over; once closed, with those that nobody came to read."""
        return self._tokens

    async def aclose(self) -> None:
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        await _close_all(self._streams)
        self._tokens += sum(len(output.token_ids) for stream in self._streams for output in stream.unread())

    async def _whole(self, stream: OutputStream) -> AsyncIterator[Output]:
        """The outputs up to the finish reason that every accepted request has.

        Raises GenerationFailed, ReaderTooSlow, EngineStopped.
        """
        async for output in stream:
            self._tokens += len(output.token_ids)
            yield _checked(output)
            if output.finish_reason is not None:
                return
        raise GenerationFailed("The engine dropped this request.", "generation_failed")

    async def _pump(self, index: int, stream: OutputStream) -> None:
        try:
            async for output in self._whole(stream):
                await self._queue.put((index, output))
        except Exception as error:
            await self._queue.put(error)
        else:
            await self._queue.put(None)


async def _close_all(streams: Sequence[OutputStream]) -> None:
    await asyncio.gather(*(stream.aclose() for stream in streams), return_exceptions=True)


def _checked(output: Output) -> Output:
    if output.finish_reason is FinishReason.ERROR:
        message = output.error or "The engine could not finish this request."
        raise GenerationFailed(message, output.error_code or "generation_failed")
    if output.finish_reason is FinishReason.ABORT:
        raise EngineStopped() if output.error is None else ReaderTooSlow(output.error)
    return output
