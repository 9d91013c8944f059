"""Evidence: what a simulated quote costs who makes it, and what a verdict costs who asks for it.

Back of an envelope: a quote is one ECDSA P-256 signature, about 14 us of `openssl speed`, and a copy of 4 KiB. A
verdict verifies some twelve signatures (quote, QE report, three chains of two or three, two CRLs, TCB info, QE
identity) at 40 us each, so half a millisecond, and reads 14 KiB of JSON and PEM. On hardware a quote is milliseconds of
another enclave's time.
"""

import time
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from tests.evidence.forge import MEASUREMENT, REPORT_DATA, Forge

from enclave_os.evidence.appraise import appraise
from enclave_os.evidence.policy import Policy
from enclave_os.evidence.quote import parse_quote

Measure = Callable[..., list[float]]
SIGNED = bytes(432)


@pytest.fixture(scope="module")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Forge:
    return Forge(tmp_path_factory.mktemp("bench") / "platform")


def repeated(call: Callable[[], object], count: int) -> Callable[[], float]:
    def once() -> float:
        began = time.perf_counter_ns()
        for _ in range(count):
            call()
        return (time.perf_counter_ns() - began) / count

    return once


def test_signature(per_operation: Measure) -> None:
    key, algorithm = ec.generate_private_key(ec.SECP256R1()), ec.ECDSA(hashes.SHA256())
    per_operation("P-256 signature alone, cryptography", repeated(lambda: key.sign(SIGNED, algorithm), 500))


def test_quote(per_operation: Measure, forge: Forge) -> None:
    per_operation("simulated quote", repeated(lambda: forge.attester.quote(REPORT_DATA), 500), "1.5 x signature")


def test_parse(per_operation: Measure, forge: Forge) -> None:
    quote = forge.attester.quote(REPORT_DATA)
    per_operation("parse a quote", repeated(lambda: parse_quote(quote), 1_000))


def test_appraise(per_operation: Measure, forge: Forge) -> None:
    quote, now = forge.attester.quote(REPORT_DATA), int(time.time()) + 60
    policy = Policy(mr_enclaves=frozenset({MEASUREMENT}), allow_simulated=True)

    def judge() -> None:
        appraise(quote, forge.collateral, now=now, report_data=REPORT_DATA, policy=policy).require()

    per_operation("appraise a quote with its collateral", repeated(judge, 50), "2 ms")
