"""How the server logs: one line an event, JSON for machines or colours for a terminal.

Owns the set-up of structlog and of the standard library's logging, which other packages and libraries use. Called once,
by `serve`; prompts and answers are never handed to it, and what looks like one is taken out again.
"""

import logging
import sys
from typing import Any

import structlog

from server.redaction import redact

_NOISY = ("httpx", "httpcore", "uvicorn.access", "alembic")


def set_up(level: str, format: str) -> None:
    """Log to standard error. `format` is `json`, `console`, or `auto`, which asks whether a terminal is there."""
    pretty = format == "console" or (format == "auto" and sys.stderr.isatty())
    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
    shared: list[Any] = [structlog.contextvars.merge_contextvars, structlog.stdlib.add_log_level, stamp]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,  # two servers of one process may log differently
    )
    remove = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    # A traceback becomes text first: the console's own would show the values of local variables.
    last: list[Any] = [remove, structlog.processors.format_exc_info, redact]
    last.append(structlog.dev.ConsoleRenderer() if pretty else structlog.processors.JSONRenderer())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=last))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)
