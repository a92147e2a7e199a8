"""What is logged when our own code fails: where, and which exception, but not its text.

The text of an exception may quote a header or a body, and so a secret.
"""

from __future__ import annotations

import logging
import traceback

logger = logging.getLogger(__name__)


def log_bug(what: str, error: BaseException) -> None:
    """Log an unexpected exception without its message."""
    place = "".join(traceback.format_tb(error.__traceback__))
    logger.error("%s This is a bug, please report it: %s\n%s", what, type(error).__name__, place)
