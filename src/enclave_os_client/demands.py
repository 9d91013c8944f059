"""What a client of this machine asks of every connection; an enclave asks the same by a clock that it trusts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from enclave_os.verifier import demands
from enclave_os.verifier.demands import ClientIdentity, Mode

__all__ = ["ClientIdentity", "Demands", "Mode"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Demands(demands.Demands):
    """`enclave_os.verifier.demands.Demands`, judged by this machine's clock."""

    clock: Callable[[], float] = time.time
