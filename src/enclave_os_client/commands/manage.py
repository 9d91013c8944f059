"""How the commands that carry a token reach a server: who may be given it is said first, by evidence or by a CA."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from enclave_os.errors import ServerProtocolError
from enclave_os.evidence.strict_json import load_object
from enclave_os_client.answer import Answer
from enclave_os_client.token import TOKEN_SIZE_MAX

from .demand_flags import EX_REFUSED, add_demands, address, demands_of

if TYPE_CHECKING:
    import httpx

    from enclave_os.verifier.demands import Mode

    from .parser import Parser

Command = Callable[["Parser", argparse.Namespace], int]
"""What a command does; returns the exit code."""

UNAUTHORIZED: Final = 401
READ_SIZE: Final = 64 << 10
ANSWER_SIZE_MAX: Final = 32 << 20  # the largest value of a store is 16 MiB

TRUST: Final = """\
The token goes to a server that is known, never to another: --mrenclave (or --mrsigner) has it attest itself over this
very connection first, --ca alone checks nothing but the operator's certificate, and the command says which it was.
"""
EXIT_CODES: Final = """\
exit codes: 0 done, 1 the server's evidence is refused, 64 wrong arguments, 65 the server refused the request,
66 a file cannot be read, 69 no answer (network), 75 the server cannot do it now, 76 it does not speak the protocol,
77 the token does not carry the role, or is none
"""


class Refused(Exception):
    """The command ends with this text and exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def add_server(parser: Parser, whose: str | None) -> None:
    """Describe where the server is, what token it is shown ("of role manager", say; None: none), and what must hold of
    it."""
    parser.add_argument("--url", required=True, metavar="https://HOST[:PORT]", help="the server")
    if whose is None:
        parser.set_defaults(token=None)
    else:
        parser.add_argument(
            "--token", required=True, metavar="FILE", help=f"file with a bearer token {whose}; - is standard input"
        )
    add_demands(parser)


def set_work(parser: Parser, work: Command) -> None:
    """Have the command of `parser` do `work`, and say in one line what ended it."""
    parser.set_defaults(run=lambda parsed: _run(parser, parsed, work))


def _run(parser: Parser, parsed: argparse.Namespace, work: Command) -> int:
    if importlib.util.find_spec("httpx") is None:
        print("enclave-os: this needs the client's packages: pip install 'enclave-os[client]'", file=sys.stderr)
        return os.EX_UNAVAILABLE
    try:
        return work(parser, parsed)
    except Refused as refused:
        for line in str(refused).splitlines():
            print(f"enclave-os: {line}", file=sys.stderr)
        return refused.code
    except ServerProtocolError as error:
        print(f"enclave-os: {error}", file=sys.stderr)
        return os.EX_PROTOCOL


class Server:
    """One kept connection (or as few as can be) to the server that the flags name.

    Args: mode: the evidence that is asked for, when there are demands on evidence; None: of the session.
    Raises: Refused. OSError: a file cannot be read.
    """

    def __init__(self, parser: Parser, parsed: argparse.Namespace, mode: Mode | None = None) -> None:
        from enclave_os.verifier.demands import Mode

        host, port = address(parser, parsed.url)
        self._parsed = parsed
        self._where = f"{host}:{port}"
        self._origin = f"https://{f'[{host}]' if ':' in host else host}:{port}"
        _token(parsed)  # one that is none is said before anybody is talked to
        with self._saying():
            self._client = _client(parser, parsed, mode or Mode.SESSION)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    def ask(
        self, method: str, path: str, document: Mapping[str, Any] | None = None, *, content: bytes | None = None
    ) -> Answer:
        """The server's answer to one request."""
        return read(self.send(method, path, document, content=content))

    def send(
        self,
        method: str,
        path: str,
        document: Mapping[str, Any] | None = None,
        *,
        content: bytes | None = None,
        fields: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """What came back, whatever it is, whole and within bounds. The token's file is read for each.

        Args: path: as it is to stand on the wire. document, content: the body, as JSON or as it is.
        """
        token = _token(self._parsed)
        headers = {
            "Accept-Encoding": "identity",
            **(fields or {}),
            **({"Authorization": f"Bearer {token}"} if token else {}),
        }
        with (
            self._saying(),
            self._client.stream(method, self._origin + path, json=document, content=content, headers=headers) as answer,
        ):
            return self._whole(answer)

    def _whole(self, answer: httpx.Response) -> httpx.Response:
        """The answer with its body. A server that is not attested may be anybody, and sends what it likes."""
        import httpx

        if answer.headers.get("content-encoding", "identity") != "identity":
            raise ServerProtocolError("the answer is compressed, which nobody asked for")
        due = time.monotonic() + self._parsed.seconds
        body = bytearray()
        for piece in answer.iter_bytes(READ_SIZE):
            body += piece
            if len(body) > ANSWER_SIZE_MAX:
                raise ServerProtocolError(f"the answer has more than {ANSWER_SIZE_MAX} bytes")
            if time.monotonic() >= due:
                raise httpx.ReadTimeout(f"the answer took longer than {self._parsed.seconds:g} s")
        return httpx.Response(answer.status_code, headers=answer.headers, content=bytes(body), request=answer.request)

    def fetch(self, method: str, path: str) -> bytes:
        """The body of the server's answer to one request, as it is."""
        response = self.send(method, path)
        if not response.is_success:
            raise refusal(response)
        return response.content

    @contextlib.contextmanager
    def _saying(self) -> Iterator[None]:
        """What can go wrong on the way, in words."""
        import httpx

        from enclave_os.errors import AttestationError, ConfigError
        from enclave_os_client.memory import MemoryFileError

        try:
            yield
        except AttestationError as error:
            raise Refused(f"REFUSED, and nothing was sent: {error}", EX_REFUSED) from error
        except (ServerProtocolError, MemoryFileError) as error:
            raise Refused(f"{self._where}: {error}", os.EX_PROTOCOL) from error
        except ConfigError as error:
            raise Refused(f"{self._parsed.ca}: {error}", os.EX_DATAERR) from error
        except httpx.TransportError as error:
            raise Refused(
                f"no answer from {self._where}: {str(error) or type(error).__name__}", os.EX_UNAVAILABLE
            ) from error


def ask(
    parser: Parser,
    parsed: argparse.Namespace,
    method: str,
    path: str,
    document: Mapping[str, Any] | None = None,
    *,
    mode: Mode | None = None,
) -> Answer:
    """The server's answer to one request, over a connection of its own. Args and errors: see `Server`."""
    with Server(parser, parsed, mode) as server:
        return server.ask(method, path, document)


def say(*lines: object) -> None:
    """Print lines that a server had a part in: escaped, so that none of it passes for ours or moves the cursor."""
    from enclave_os.evidence.exchange import escaped

    for line in lines:
        print(escaped(str(line)))


def _client(parser: Parser, parsed: argparse.Namespace, mode: Mode) -> httpx.Client:
    import httpx

    from enclave_os.errors import UsageError
    from enclave_os_client.client import Client

    if parsed.mrenclave or parsed.mrsigner:
        try:
            demands = demands_of(parser, parsed, mode)
        except UsageError as error:
            parser.error(str(error))
        _say_once(parsed, f"the server attests itself first, by {mode.value} evidence")
        if parsed.allow_simulated:
            _say_once(parsed, "SIMULATED evidence is accepted: no hardware made it, and it proves nothing")
        return Client(demands, timeout=parsed.seconds)
    if parsed.ca is None:
        parser.error(
            "who may be given the token? --mrenclave HEX asks for evidence; --ca FILE trusts a certificate alone"
        )
    try:
        context = ssl.create_default_context(cafile=parsed.ca)
    except ssl.SSLError as error:
        raise Refused(f"{parsed.ca} holds no certificate in PEM", os.EX_DATAERR) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    _say_once(parsed, "not attested: the certificate is checked against --ca, and nothing says what code answers")
    return httpx.Client(verify=context, trust_env=False, timeout=parsed.seconds)


def _say_once(parsed: argparse.Namespace, text: str) -> None:
    said = vars(parsed).setdefault("said", set())
    if text not in said:
        said.add(text)
        print(f"enclave-os: {text}", file=sys.stderr)


def _token(parsed: argparse.Namespace) -> str:
    """The token; empty where the command shows none."""
    name = parsed.token
    if name is None:
        return ""
    if name == "-":
        given = vars(parsed)
        if "read_token" not in given:
            given["read_token"] = sys.stdin.read(TOKEN_SIZE_MAX + 2)  # there once
        token = str(given["read_token"]).strip()
    else:
        with Path(name).open(encoding="ascii", errors="replace") as stream:
            token = stream.read(TOKEN_SIZE_MAX + 2).strip()
    if not token or not token.isascii() or any(character.isspace() for character in token):
        source = "standard input" if name == "-" else name
        raise Refused(f"{source} holds no token: one line, as enclave-os token issue prints it", os.EX_DATAERR)
    return token


def read(response: httpx.Response) -> Answer:
    """The JSON object of an answer. Raises: Refused: it is none, or the server refused."""
    if response.is_success:
        return _document(response)
    raise refusal(response)


def refusal(response: httpx.Response) -> Refused:
    """What ends the command when that is the answer. Raises: Refused: it says nothing that can be read."""
    text = f"the server answered {response.status_code}: {read_error(response)}"
    if response.status_code == UNAUTHORIZED:
        text += (
            "\n(an expired token, or another issuer's; or the server's clock is in doubt: enclave-os seal clock --help)"
        )
    codes = {UNAUTHORIZED: os.EX_NOPERM, 403: os.EX_NOPERM, **dict.fromkeys((429, 503, 504), os.EX_TEMPFAIL)}
    return Refused(text, codes.get(response.status_code, os.EX_DATAERR))


def read_error(response: httpx.Response) -> str:
    """What a server says in refusing, escaped. Raises: Refused: nothing that can be read."""
    from enclave_os.evidence.exchange import printable

    return printable(str(_document(response).get("error", "without a reason")))


def _document(response: httpx.Response) -> Answer:
    try:
        return Answer(load_object(response.content), response.url.netloc.decode("ascii"))
    except ValueError as error:
        raise Refused(f"the server answered {response.status_code} with no JSON object", os.EX_PROTOCOL) from error
