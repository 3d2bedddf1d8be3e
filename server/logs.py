"""How the server logs: one line an event, JSON for machines or colours for a terminal.

Owns the set-up of structlog and of the standard library's logging, which other rooms use. Called once,
by `serve`; prompts and answers are never handed to it.
"""

import logging
import sys
from typing import Any

import structlog

_NOISY = ("httpx", "httpcore", "uvicorn.access", "alembic")


def set_up(level: str, format: str) -> None:
    """Log to standard error. `format` is `json`, `console`, or `auto`, which asks whether a terminal is there."""
    pretty = format == "console" or (format == "auto" and sys.stderr.isatty())
    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
    shared: list[Any] = [structlog.contextvars.merge_contextvars, structlog.stdlib.add_log_level, stamp]
    last: list[Any] = [structlog.dev.ConsoleRenderer()] if pretty else [_traceback, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    remove = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[remove, *last]))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)


_traceback = structlog.processors.format_exc_info
