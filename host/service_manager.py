"""Telling a service manager how we are: sd_notify(3), and a line on a descriptor for scripts."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Final

STDERR: Final = 2


def notify(state: str, environment: Mapping[str, str] = os.environ) -> None:
    """Send `READY=1` or `STOPPING=1` to $NOTIFY_SOCKET if there is one.

    A manager that does not listen is not our failure: it has its own deadline for us.
    """
    path = environment.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = f"\0{path[1:]}" if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection:
        try:
            connection.sendto(state.encode(), address)
        except OSError:
            return


def say_ready(descriptor: int, line: str) -> None:
    """Write one line to a descriptor that the starter gave us, and close it unless it is a standard stream.

    A starter that closed its end no longer wants to know.
    """
    try:
        os.write(descriptor, f"{line}\n".encode())
        if descriptor > STDERR:
            os.close(descriptor)
    except OSError:
        return
