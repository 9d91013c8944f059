"""Waiting until a moment of the monotonic clock, and no longer."""

from __future__ import annotations

import threading
import time


def left(until: float) -> float:
    """Seconds; 0: it is past."""
    return max(0.0, until - time.monotonic())


def ended(thread: threading.Thread | None, until: float) -> bool:
    """Whether a thread ended, if there was one, for which this waits."""
    if thread is not None:
        thread.join(left(until))
    return thread is None or not thread.is_alive()
