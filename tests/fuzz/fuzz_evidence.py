"""Invariant: evidence that was spoilt anywhere is refused, by a claim that says why, and the process lives.

    python -m tests.fuzz.fuzz_evidence --inputs 100000

Quotes and collateral of a platform of a test's own, which can sign all of it anew, and the real ones of the vectors;
bits, lengths, cuts and doublings. What the verifier's libraries take for granted may end the process that holds the
keys (it did: threat-model.md RT6), so this is run as a process of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.evidence.forge import REPORT_DATA, Forge
from tests.evidence.test_appraise import IN_TIME, PRODUCTION, REAL_COLLATERAL, REAL_QUOTE, REAL_REPORT_DATA, SIMULATED

from enclave_os.evidence.appraise import appraise
from enclave_os.evidence.collateral import Collateral

WORDS = (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\x84\xff\xff\xff")


def spoilt(data: bytes, choice: random.Random) -> bytes:
    """The data with something of it changed; of other bytes than before."""
    changed = bytearray(data)
    kind = choice.randrange(6)
    while changed == data:
        at = choice.randrange(len(changed))
        if kind == 0:
            changed[at] ^= 1 << choice.randrange(8)
        elif kind == 1:
            changed[at] = choice.randrange(256)
        elif kind == 2:
            del changed[at : at + choice.choice((1, 2, 4, 100, 1000))]
        elif kind == 3:
            changed[at:at] = choice.randbytes(choice.choice((1, 2, 4, 64)))
        elif kind == 4:
            size, other = choice.choice((1, 4, 32)), choice.randrange(len(changed))
            changed[at : at + size] = changed[other : other + size]
        else:
            changed[at : at + 4] = choice.choice(WORDS)
        kind = choice.randrange(4) if len(changed) > 8 else 3
    return bytes(changed)


def fuzz(count: int, seed: int) -> int:
    """Judge `count` spoilt pieces of evidence. Returns: how many were refused; the others were spoilt in vain."""
    choice = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        forge = Forge(Path(folder) / "platform")
        now = int(time.time()) + 60
        whole = [
            (forge.quote(), forge.collateral, {"now": now, "report_data": REPORT_DATA, "policy": SIMULATED}),
            (REAL_QUOTE, REAL_COLLATERAL, {"now": IN_TIME, "report_data": REAL_REPORT_DATA, "policy": PRODUCTION}),
        ]
        members = [field.name for field in dataclasses.fields(Collateral)]
        refused = 0
        for _ in range(count):
            quote, collateral, arguments = choice.choice(whole)
            if choice.random() < 0.5:
                quote = spoilt(quote, choice)
            else:
                member = choice.choice(members)
                value = getattr(collateral, member)
                changed = spoilt(value if isinstance(value, bytes) else value.encode(), choice)
                other: Any = changed if isinstance(value, bytes) else changed.decode("utf-8", "replace")
                collateral = dataclasses.replace(collateral, **{member: other})
            refused += not appraise(quote, collateral, **arguments).accepted  # type: ignore[arg-type] # of several kinds
    return refused


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    refused = fuzz(arguments.inputs, arguments.seed)
    print(f"{arguments.inputs} judged, {refused} refused, and the process lives")


if __name__ == "__main__":
    sys.exit(main())
