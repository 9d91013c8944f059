"""RT11 over real sockets: one connection that asks for evidence without end costs itself, and nobody else."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from enclave_os.ratls.session import MESSAGES_BURST, MESSAGES_PER_SECOND
from tests.e2e.server import Server
from tests.e2e.wire import HELLO, Connection, request
from tests.enclave.attestation_rig import CONTEXT, b64url

FLOOD = 10_000
AT_ONCE = 100  # pipelined, then the answers are read


def challenge(connection: Connection) -> bytes:
    """A right challenge request for this connection."""
    der = connection.tls.getpeercert(binary_form=True)
    assert der is not None
    key = x509.load_der_x509_certificate(der).public_key()
    spki = hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
    body = json.dumps({"v": 2, "mode": "challenge", "leaf": b64url(spki), "context": b64url(CONTEXT)}).encode()
    return request("POST", "/__privasys/attest", "Content-Type: application/json", body=body)


class Flood(threading.Thread):
    """Asks FLOOD times on one connection; `statuses` says what came back."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self.statuses: Counter[int] = Counter()
        self.retry_after: set[str] = set()
        self.begun = threading.Event()
        self.seconds = 0.0
        self._connection = Connection(server)

    def run(self) -> None:
        begin = time.monotonic()
        asked = challenge(self._connection)
        with self._connection as connection:
            for _ in range(FLOOD // AT_ONCE):
                connection.send(asked * AT_ONCE)
                for _ in range(AT_ONCE):
                    answer = connection.answer("POST")
                    self.statuses[answer.status] += 1
                    self.retry_after.update(answer.all("Retry-After"))
                self.begun.set()
        self.seconds = time.monotonic() - begin


def test_a_flood_on_one_connection_does_not_reach_the_others(server: Server) -> None:
    flood = Flood(server)
    flood.start()
    assert flood.begun.wait(60)
    served = 0
    with Connection(server) as other:
        while flood.is_alive() or served < 10:
            assert other.ask(HELLO, "POST").body == b"world"
            served += 1
        evidence = other.ask(challenge(other), "POST")
        assert evidence.status == 200, "the rate is each connection's own"
        assert evidence.one("X-Privasys-Attestation") == "challenge"
    flood.join(60)
    assert sum(flood.statuses.values()) == FLOOD
    assert set(flood.statuses) == {200, 429}
    assert MESSAGES_BURST <= flood.statuses[200] <= MESSAGES_BURST + MESSAGES_PER_SECOND * flood.seconds + 1
    assert flood.retry_after == {"1"}
    # Neither starves: meanwhile the other client, one request at a time, got its share of the server.
    assert served >= FLOOD // AT_ONCE // 10
