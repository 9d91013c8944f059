"""Connections that are kept for the next request: when they end, and whose calls keep which."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from enclave_os.egress.service import POOLS_MAX
from enclave_os.errors import EgressError
from enclave_os.evidence.policy import Policy
from tests.modules.egress_rig import EgressRig
from tests.modules.egress_servers import SECONDS_MAX, Authority, TLSServer, head, whole

CA = Authority()
LEAF = CA.leaf("localhost")


class Closing(TLSServer):
    """Answers the first request of a connection, and ends it in the middle of the second, as a server that restarts.

    Attributes: methods: of the requests, as they came.
    Args: lives: connections that end so; those after them serve on. shut: say close_notify.
    """

    def __init__(self, folder: Path, *, lives: int = 1, shut: bool = False, last: bytes = b"") -> None:
        self.lives, self.shut, self.last = lives, shut, last
        super().__init__(folder, LEAF, self.once)

    @property
    def methods(self) -> list[str]:
        return [head.split()[0].decode() for head in self.served]

    def once(self, connection: ssl.SSLSocket) -> None:
        ending = self.taken <= self.lives
        while data := self.head(connection):
            size = re.search(rb"content-length: (\d+)", data, re.IGNORECASE)
            left = int(size[1]) - len(data.partition(b"\r\n\r\n")[2]) if size else 0
            while left > 0:
                left -= len(connection.recv(65536))
            if ending and b" /second" in data:
                connection.sendall(self.last)
                connection.unwrap() if self.shut else connection.shutdown(socket.SHUT_RDWR)
                return
            connection.sendall(whole(b"yes"))


@pytest.fixture
def closing(tmp_path: Path) -> Iterator[Callable[..., tuple[Closing, EgressRig]]]:
    """A `Closing`, and a rig that keeps a connection to it."""
    made: list[tuple[Closing, EgressRig]] = []

    def begin(**arguments: Any) -> tuple[Closing, EgressRig]:
        server = Closing(tmp_path / "closing", **arguments)
        rig = EgressRig(tmp_path, [f"localhost:{server.port}"], CA.pem)
        made.append((server, rig))
        assert rig.get(server.url(path="/first")).text == "yes"
        return server, rig

    yield begin
    for server, rig in made:
        server.close()
        rig.close()


class TestAKeptConnectionThatEnds:
    """A server closes when it likes; what is as good twice as once is asked once more, over a new connection."""

    @pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
    @pytest.mark.parametrize("shut", [False, True])
    def test_what_is_idempotent_is_sent_once_more(self, closing: Any, method: str, shut: bool) -> None:
        server, rig = closing(shut=shut)
        body = b"body" if method == "PUT" else None
        answer = rig.run(rig.egress.request(method, server.url(path="/second"), content=body))
        assert (answer.status_code, server.methods, server.taken) == (200, ["GET", method, method], 2)

    def test_nothing_else_is(self, closing: Any) -> None:
        server, rig = closing()
        assert rig.fails(server.url(path="/second"), "POST", content=b"x").stage == "truncated"
        assert server.methods == ["GET", "POST"]

    def test_nor_a_body_that_is_spent(self, closing: Any) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"piece"

        server, rig = closing()
        error = rig.fails(server.url(path="/second"), "PUT", headers={"Content-Length": "5"}, content=pieces())
        assert (error.stage, server.methods) == ("truncated", ["GET", "PUT"])

    def test_nor_one_that_ends_again(self, closing: Any) -> None:
        server, rig = closing(lives=9)
        assert rig.fails(server.url(path="/second")).stage == "truncated"
        assert server.methods == ["GET", "GET", "GET"]

    def test_nor_on_a_connection_that_was_made_for_it(self, closing: Any) -> None:
        server, rig = closing(lives=9)
        rig.run(rig.egress.reclaim())
        assert rig.fails(server.url(path="/second")).stage == "truncated"
        assert server.methods == ["GET", "GET"]

    def test_an_answer_that_is_none_is_the_answer(self, closing: Any) -> None:
        server, rig = closing(last=b"garbage\r\n\r\n")
        assert rig.fails(server.url(path="/second")).stage == "protocol"
        assert server.methods == ["GET", "GET"]

    def test_a_body_that_is_cut_is_not_asked_for_again(self, closing: Any) -> None:
        server, rig = closing(last=head("Content-Length: 100") + b"half")
        assert rig.fails(server.url(path="/second")).stage == "truncated"
        assert server.methods == ["GET", "GET"]


class TestPoolsOfPolicies:
    """A module's apps choose the policies; none of them ends another's call by choosing many."""

    @staticmethod
    def policy(number: int) -> Policy:
        return Policy(mr_enclaves=frozenset({number.to_bytes(32, "big")}))

    def test_a_call_under_way_outlives_any_number_of_other_policies(self, tmp_path: Path) -> None:
        go = threading.Event()

        def answer(connection: ssl.SSLSocket) -> None:
            server.head(connection)
            go.wait(SECONDS_MAX)
            connection.sendall(whole(b"late"))
            connection.unwrap()

        server = TLSServer(tmp_path / "server", LEAF, answer)
        rig = EgressRig(tmp_path, [f"localhost:{server.port}"], CA.pem)

        async def work() -> bytes:
            slow = asyncio.ensure_future(rig.egress.request("GET", server.url()))
            while not server.served:
                await asyncio.sleep(0)
            for number in range(3 * POOLS_MAX):
                with pytest.raises(EgressError):  # whom the operator does not name
                    await rig.egress.request("GET", "https://localhost:1/", attested=self.policy(number))
            go.set()
            return (await slow).content

        with server, rig:
            assert rig.run(work()) == b"late"
            assert len(rig.egress._pools) <= POOLS_MAX

    def test_so_many_calls_at_once_are_the_most(self, tmp_path: Path) -> None:
        with EgressRig(tmp_path, ["localhost:1"], CA.pem) as rig:
            self._fill(rig)

    def test_a_call_for_somebody_else_shows_nothing_of_ours(self, tmp_path: Path) -> None:
        with EgressRig(tmp_path, ["localhost:1"], CA.pem) as rig:
            egress = rig.egress
            ours, theirs = egress._pool(self.policy(1)), egress._pool(self.policy(1), present=False)
            assert ours is not theirs  # a connection on which we proved ourselves is not lent
            for pool, identity in ((ours, rig.service.identity), (theirs, None)):
                opened: Any = pool.transport._pool._network_backend._open  # type: ignore[attr-defined] # the Backend's
                assert opened.keywords["demands"].identity is identity

    def _fill(self, rig: EgressRig) -> None:
        for number in range(POOLS_MAX):
            rig.egress._pool(self.policy(number)).calls += 1
        error = rig.fails("https://localhost:1/", attested=self.policy(99))
        assert (error.stage, error.fault, error.reason) == ("limit", "caller", "policies")
        for pool in rig.egress._pools.values():
            pool.calls -= 1
