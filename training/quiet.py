"""Silences the training libraries: their progress bars, their telemetry, and messages known to be harmless.

Owns the list of those messages. A warning that is not on it is shown.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import datasets
import huggingface_hub.constants

from loader.base import quiet

HARMLESS = (
    # transformers aligns the model's special tokens with the tokenizer's, which is where they came from.
    "The tokenizer has new PAD/BOS/EOS tokens",
    # PEFT hides the base's signature; labels are found under their usual name.
    "No label_names provided for model class",
    # Checkpointing and a cache exclude each other; the trainers choose the first.
    "`use_cache=True` is incompatible with",
    # Checkpoints are put in order by their step instead.
    "mtime may not be reliable",
    # A reward model starts with a new head in place of the base's.
    "ForSequenceClassification LOAD REPORT",
)
LOGGERS = (
    "transformers.trainer",
    "transformers.trainer_utils",
    "transformers.modeling_utils",
    "transformers.modeling_layers",
    "trl",
)


@contextmanager
def libraries_quiet() -> Iterator[None]:
    """A block without the libraries' progress bars (the run has its own), usage reports and HARMLESS messages."""
    telemetry = huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY
    bars = datasets.is_progress_bar_enabled()
    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True
    datasets.disable_progress_bars()
    loggers = [logging.getLogger(name) for name in LOGGERS]
    for logger in loggers:
        logger.addFilter(_is_not_harmless)
    try:
        with quiet(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)
            yield
    finally:
        for logger in loggers:
            logger.removeFilter(_is_not_harmless)
        huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = telemetry
        if bars:
            datasets.enable_progress_bars()


def _is_not_harmless(record: logging.LogRecord) -> bool:
    return not any(phrase in record.getMessage() for phrase in HARMLESS)
