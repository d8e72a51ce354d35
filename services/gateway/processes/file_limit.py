"""Raises the limit of open files: each client and each request to a model server holds one."""

from __future__ import annotations

import logging
import resource

logger = logging.getLogger(__name__)


async def raise_file_limit() -> None:
    """Raise the soft limit to the hard limit, and log what this process has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:  # Such as on macOS, whose kernel allows less than its hard limit.
        logger.warning("at most %d open files: the limit cannot be raised to %d: %s", soft, hard, error)
        return
    logger.info("at most %d open files (the limit was %d); raise it with ulimit -Hn", hard, soft)
