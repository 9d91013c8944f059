"""The ingress between an honest host and honest clients: every request gets its answer, in order, once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from enclave_os.http import Request, Response
from enclave_os.wire.frames import CloseReason, FrameKind
from tests.enclave.ingress_harness import NAME, MakeIngress, echo, ingresses, request


@pytest.fixture
def make(tmp_path: Path) -> Iterator[MakeIngress]:
    yield from ingresses(tmp_path)


class TestOneRequest:
    def test_a_get_is_answered_and_the_connection_stays(self, make: MakeIngress) -> None:
        harness = make()
        client = harness.connect()
        reply = client.ask("GET /hello")
        assert (reply.status, reply.body) == (200, b"GET /hello ")
        assert reply.fields["content-length"] == str(len(reply.body))
        assert "connection" not in reply.fields
        assert client.closed is None
        assert harness.count("connections_live") == 1

    def test_the_module_sees_method_path_body_and_alleged_peer(self, make: MakeIngress) -> None:
        harness = make()
        harness.connect().ask("POST /a%20b?q=1", b"body")
        (asked,) = harness.requests
        assert (asked.method, asked.path, asked.query, asked.body) == ("POST", "/a b", "q=1", b"body")
        assert asked.host == NAME
        assert asked.peer == "192.0.2.1:50000"

    def test_head_has_the_fields_of_get_and_no_body(self, make: MakeIngress) -> None:
        client = make(lambda _: Response(200, b"12345")).connect()
        reply = client.ask("HEAD /x")
        assert reply.fields["content-length"] == "5"
        assert client.plain == b""
        assert client.ask("GET /x").body == b"12345"

    def test_connection_close_is_said_and_done(self, make: MakeIngress) -> None:
        harness = make()
        client = harness.connect()
        reply = client.ask("GET /x\nConnection: close")
        assert reply.fields["connection"] == "close"
        assert client.closed == CloseReason.NORMAL
        assert client.tls_closed  # close_notify came before the CLOSE
        client.close()
        harness.check_at_rest()

    def test_http_1_0_closes_unless_asked(self, make: MakeIngress) -> None:
        harness = make()
        client = harness.connect()
        assert client.ask("GET /x HTTP/1.0").fields["connection"] == "close"
        assert client.closed == CloseReason.NORMAL
        other = harness.connect()
        assert other.ask("GET /x HTTP/1.0\nConnection: keep-alive").fields["connection"] == "keep-alive"
        assert other.closed is None

    def test_an_absent_or_odd_peer_address_is_text_all_the_same(self, make: MakeIngress) -> None:
        harness = make()
        client = harness.client()
        client.new(b"\xff\xfe\r\n\x00" + b"x" * 59)
        assert client.engine.read() is None
        client.flush()
        harness.pump()
        client.flush()
        client.ask("GET /")
        assert harness.requests[0].peer.startswith("\ufffd\ufffd\r\n\x00")


class TestManyRequests:
    def test_keep_alive_for_a_hundred(self, make: MakeIngress) -> None:
        harness = make()
        client = harness.connect()
        for number in range(100):
            assert client.ask(f"POST /{number}", b"x" * number).body == f"POST /{number} ".encode() + b"x" * number
        assert harness.count("requests_total") == 100

    @pytest.mark.parametrize("piece", [1, 7, 100, 16_384])
    def test_a_thousand_pipelined_come_back_in_order(self, make: MakeIngress, piece: int) -> None:
        count = 1000 if piece > 1 else 50
        harness = make()
        client = harness.connect()
        text = b"".join(request(f"GET /{number}") for number in range(count))
        for start in range(0, len(text), 8000):
            client.engine.write(text[start : start + 8000])
            client.flush(piece)
            harness.pump()
        assert [client.reply().body for _ in range(count)] == [f"GET /{number} ".encode() for number in range(count)]
        assert client.plain == b""

    def test_interleaved_connections_get_their_own_answers(self, make: MakeIngress) -> None:
        harness = make()
        clients = [harness.connect() for _ in range(20)]
        for turn in range(10):
            for client in clients:
                client.write(request(f"GET /{client.conn_id}/{turn}"))
            harness.pump()
            for client in clients:
                assert client.reply().body == f"GET /{client.conn_id}/{turn} ".encode()

    def test_what_follows_connection_close_is_not_answered(self, make: MakeIngress) -> None:
        harness = make()
        client = harness.connect()
        client.write(request("GET /1\nConnection: close") + request("GET /2"))
        harness.pump()
        assert client.reply().body == b"GET /1 "
        assert client.plain == b""
        assert len(harness.requests) == 1


class TestBodies:
    def test_bodies_up_to_the_limit(self, make: MakeIngress) -> None:
        harness = make(limits={"body_bytes": 200_000})
        client = harness.connect()
        body = bytes(range(256)) * 781 + b"x" * 64
        assert len(body) == 200_000
        assert client.ask("POST /", body).body == b"POST / " + body

    def test_one_byte_more_is_413_and_the_end(self, make: MakeIngress) -> None:
        harness = make(limits={"body_bytes": 200_000})
        client = harness.connect()
        reply = client.ask("POST /\nContent-Length: 200001")
        assert (reply.status, reply.fields["connection"]) == (413, "close")
        assert client.closed == CloseReason.NORMAL
        assert harness.requests == []

    def test_a_chunked_body_is_joined(self, make: MakeIngress) -> None:
        client = make().connect()
        assert (
            client.ask("POST /\nTransfer-Encoding: chunked", b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n").body
            == b"POST / abcde"
        )

    def test_large_answers_arrive_whole(self, make: MakeIngress) -> None:
        harness = make()
        client = harness.connect()
        for size in (0, 1, 16_000, 16_384, 32_500, 32_768, 33_000, 70_000, 1_000_000):
            body = bytes(size % 251 for _ in range(16)) * (size // 16) + b"z" * (size % 16)
            harness.respond = lambda _, body=body: Response(200, body)  # type: ignore[misc]
            assert client.ask("GET /big").body == body
        assert client.closed is None

    def test_expect_gets_100_before_the_body(self, make: MakeIngress) -> None:
        harness = make()
        client = harness.connect()
        client.write(request("POST /\nExpect: 100-continue\nContent-Length: 3"))
        harness.pump()
        assert client.plain == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.plain.clear()
        client.write(b"abc")
        harness.pump()
        assert client.reply().body == b"POST / abc"

    def test_answers_that_nobody_takes_have_one_bound(self, make: MakeIngress) -> None:
        """Who took nothing for longest is cut, and neither who reads nor the last that came, however large."""
        harness = make(lambda asked: Response(200, b"x" * int(asked.path[1:])), limits={"body_memory_bytes": 900_000})
        first, second, third, fourth = (harness.connect() for _ in range(4))
        for client in (first, second):
            client.pause()
            client.write(request("GET /400000"))
            harness.pump()
        assert harness.count("answer_memory_bytes") == 800_000
        first.resume()
        harness.pump_once()
        first.pause()
        harness.pump()
        assert 0 < len(first.plain) < 400_000
        third.pause()
        third.write(request("GET /400000"))
        harness.pump()
        assert (first.closed, second.closed, third.closed) == (None, CloseReason.LIMIT, None)
        assert (harness.count("answer_memory_bytes"), harness.count("answers_cut_total")) == (800_000, 1)
        first.resume()
        harness.pump()
        assert first.reply().body == b"x" * 400_000
        fourth.write(request("GET /1000000"))
        harness.pump()
        assert fourth.reply().body == b"x" * 1_000_000
        assert (third.closed, harness.count("answer_memory_bytes")) == (CloseReason.LIMIT, 0)
        for client in (first, second, third, fourth):
            client.resume()
            client.close()
        harness.check_at_rest()

    def test_what_a_module_gives_to_many_is_counted_once(self, make: MakeIngress) -> None:
        asset = b"x" * 60_000

        def answer(asked: Request) -> Response:
            return Response(200, asset if asked.path == "/asset" else bytes(50_000))

        harness = make(answer, limits={"body_memory_bytes": 100_000})
        readers = [harness.connect() for _ in range(5)]
        for client in readers:
            client.pause()
            client.write(request("GET /asset"))
        harness.pump()
        assert harness.count("answer_memory_bytes") == 60_000
        other = harness.connect()
        other.pause()
        other.write(request("GET /"))
        harness.pump()
        assert harness.count("answer_memory_bytes") == 50_000, "of many that share one all go before it does"
        assert [client.closed for client in readers] == [CloseReason.LIMIT] * 5
        again = harness.connect()
        again.pause()
        again.write(request("GET /asset"))
        harness.pump()
        assert (other.closed, again.closed) == (CloseReason.LIMIT, None)
        for client in (*readers, other, again):
            client.resume()
            client.close()
        harness.check_at_rest()

    def test_all_bodies_together_have_one_bound(self, make: MakeIngress) -> None:
        harness = make(limits={"body_memory_bytes": 100_000})
        first, second, third = (harness.connect() for _ in range(3))
        for client in (first, second):
            client.write(request("POST /\nContent-Length: 80000") + b"x" * 45_000)
            harness.pump()
        assert harness.count("body_memory_bytes") == 90_000
        third.write(request("POST /\nContent-Length: 80000") + b"x" * 16_000)
        harness.pump()
        assert third.reply().status == 503
        assert third.closed == CloseReason.NORMAL
        assert harness.count("body_memory_bytes") == 90_000
        second.close()
        harness.pump()
        assert harness.count("body_memory_bytes") == 45_000
        first.write(b"x" * 35_000)
        harness.pump()
        assert first.reply().status == 200
        first.close()
        third.close()
        harness.check_at_rest()


class TestRefusals:
    @pytest.mark.parametrize(
        ("text", "status"),
        [
            (b"GET\x00/ HTTP/1.1\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
            (b"BREW / HTTP/1.1\r\nHost: x\r\n\r\n", 501),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 20_000 + b"\r\n\r\n", 431),
        ],
    )
    def test_it_is_said_and_nothing_after_it_is_a_request(self, make: MakeIngress, text: bytes, status: int) -> None:
        harness = make()
        client = harness.connect()
        client.write(text + request("GET /smuggled"))
        harness.pump()
        reply = client.reply()
        assert 400 <= reply.status < 600
        assert (reply.status, reply.fields["connection"]) == (status, "close")
        assert client.plain == b""
        assert client.closed == CloseReason.NORMAL
        assert harness.requests == []
        client.close()
        harness.check_at_rest()

    def test_bytes_that_are_not_tls_get_an_alert(self, make: MakeIngress) -> None:
        harness = make()
        client = harness.client()
        client.new()
        client.send(FrameKind.DATA, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        harness.wake()
        frames = harness.host.data_to_host.consume_many(100, 1 << 20)
        harness.host.data_to_host.release()
        assert [record[0] for record in frames] == [FrameKind.DATA, FrameKind.CLOSE]
        assert frames[0][8:11] == b"\x15\x03\x03"
        assert harness.count("handshakes_failed_total") == 1

    def test_too_many_connections_are_refused_at_once(self, make: MakeIngress) -> None:
        harness = make(limits={"connections": 3})
        clients = [harness.connect() for _ in range(3)]
        fourth = harness.client()
        fourth.new()
        harness.pump()
        assert fourth.closed == CloseReason.LIMIT
        clients[0].close()
        fourth.close()
        harness.pump()
        assert harness.connect().ask("GET /").status == 200


class TestColdConnections:
    """An idle connection's TLS buffers are given back; what lay half-read in them must not go with them."""

    SECOND = request("POST /second", b"x" * 700)

    @pytest.mark.parametrize("records", [1, 3])
    @pytest.mark.parametrize("seconds", [0.0, 1.0])
    def test_a_request_cut_anywhere_survives_the_cooling(self, make: MakeIngress, records: int, seconds: float) -> None:
        harness = make()
        client = harness.connect()
        size = len(self.SECOND) // records + 1
        length = len(self.SECOND) + 22 * records
        for cut in [*range(0, 12), *range(12, length, 61), length - 17, length - 1]:
            client.write(request("GET /first"))
            data = b"".join(
                client.ciphertext(self.SECOND[start : start + size]) for start in range(0, len(self.SECOND), size)
            )
            assert len(data) == length
            if cut:
                client.send(FrameKind.DATA, data[:cut])
            harness.turn()
            assert client.reply().body == b"GET /first "
            harness.expire(seconds)
            client.send(FrameKind.DATA, data[cut:])
            harness.turn()
            assert client.reply().body == b"POST /second " + b"x" * 700
        assert client.closed is None

    @pytest.mark.parametrize("piece", [1, 37, 1_000, 16_384])
    def test_records_behind_a_slow_module_survive_it(self, make: MakeIngress, piece: int) -> None:
        async def slow(asked: Request) -> Response:
            await asyncio.sleep(0)
            return echo(asked)

        harness = make(slow)
        client = harness.connect()
        bodies = [b"%d" % number * (number * 97 % 3_000) for number in range(1, 12)]
        text = b"".join(request("POST /", body) for body in bodies)
        for start in range(0, len(text), 5_000):
            client.engine.write(text[start : start + 5_000])
        data = client.engine.take_output()
        for start in range(0, len(data), piece):
            client.send(FrameKind.DATA, data[start : start + piece])
        harness.pump(40)
        assert [client.reply().body for _ in bodies] == [b"POST / " + body for body in bodies]
