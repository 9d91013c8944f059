"""Feeds bytes to the request parser in pieces and writes down what comes out, for every test of HTTP."""

from collections.abc import Iterable, Iterator

from enclave_os.http import CONTINUE, NEED_DATA, REFUSED, REQUEST, Request, RequestParser
from enclave_os.http._parser import AT_REFUSAL, AT_START, DONE, IN_BODY, IN_HEAD

STATES = frozenset({AT_START, IN_HEAD, IN_BODY, DONE, AT_REFUSAL})

HOST = b"Host: localhost\r\n"
AFTER = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"

Event = tuple[object, ...]


def cut(raw: bytes, size: int) -> Iterator[bytes]:
    """`raw` in pieces of `size` bytes."""
    return (raw[at : at + size] for at in range(0, len(raw), size))


def described(request: Request) -> Event:
    """Everything that a module can see."""
    return (
        "request",
        request.method,
        request.path,
        request.query,
        request.raw_target,
        request.host,
        request.http_version,
        tuple(request.headers.items()),
        request.body,
    )


def feed(pieces: Iterable[bytes], **limits: int) -> list[Event]:
    """Every event of a connection on which `pieces` arrive; stops at a refusal, as the ingress does.

    Holds the parser to its contract on the way: only the four results, no byte taken twice or skipped, known states.
    """
    parser = RequestParser(**limits)
    found: list[Event] = []
    for piece in pieces:
        pos = 0
        while pos < len(piece):
            result, used = parser.feed(piece[pos:])
            assert 0 <= used <= len(piece) - pos
            assert parser.state in STATES
            pos += used
            if result == REFUSED:
                assert 400 <= parser.status <= 505
                assert parser.reason
                assert parser.body_size == 0
                assert not parser.keep_alive
                assert parser.feed(AFTER) == (REFUSED, 0)
                parser.next()
                assert parser.feed(AFTER) == (REFUSED, 0)
                found.append(("refused", parser.status, parser.reason))
                return found
            if result == REQUEST:
                flags = (parser.keep_alive, parser.is_head)
                assert parser.feed(AFTER) == (REQUEST, 0)
                found.append(described(parser.take()) + flags)
                parser.next()
            elif result == CONTINUE:
                found.append(("continue",))
            else:
                assert result == NEED_DATA
                assert pos == len(piece)
    if parser.state != AT_START:
        found.append(("unfinished", parser.state, parser.body_size))
    return found


def both(raw: bytes, **limits: int) -> list[Event]:
    """The events of `raw`, which must be the same in one piece and byte by byte."""
    whole = feed([raw], **limits)
    assert feed(cut(raw, 1), **limits) == whole
    return whole


def status(raw: bytes, **limits: int) -> int:
    """What `raw` is refused with, however it is cut, 0 if it is not; after a refusal nothing more is parsed."""
    events = both(raw, **limits)
    assert both(raw + AFTER, **limits)[: len(events)] == events or events[-1][0] == "unfinished"
    if events[-1][0] != "refused":
        return 0
    assert both(raw + AFTER, **limits) == events
    return int(str(events[-1][1]))
