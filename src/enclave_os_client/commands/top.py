"""`enclave-os top`: what a server does right now, worker by worker, refreshed in place."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from .manage import EXIT_CODES, TRUST, Refused, Server, add_server, set_work

if TYPE_CHECKING:
    from enclave_os_client.meter import Reading

    from .parser import Parser, Subparsers

EPILOG: Final = f"""\
examples:
  enclave-os top --url https://enclave.example --token monitor.token --mrenclave 4f3c...e1
  enclave-os top --url https://localhost:8443 --token t --ca state/ca/root.pem --interval 5
  enclave-os top --url https://localhost:8443 --token t --ca state/ca/root.pem --json --count 60 > minute.jsonl

Every worker is shown, whichever answers; how many do not is said at the top. The token's file is read anew for each
look, so that a fresh token may take the old one's place. Counters that say that something went wrong are shown once
they have moved.

{TRUST}
{EXIT_CODES}"""

INTERVAL_MIN: Final = 0.2
CLEAR: Final = "\x1b[H\x1b[2J"

# Name in /metrics, and what a person calls it.
WORK: Final = (
    ("requests_total", "requests /s"),
    ("handshakes_total", "handshakes /s"),
    ("connections_live", "connections"),
    ("bytes_in_total", "in"),
    ("bytes_out_total", "out"),
    ("rpc_calls_total", "calls to the host /s"),
    ("rpc_in_flight", "calls in flight"),
    ("doorbell_wakes_total", "wake-ups /s"),
    ("body_memory_bytes", "bodies in memory"),
    ("answer_memory_bytes", "answers in memory"),
)
BYTES: Final = frozenset({"bytes_in_total", "bytes_out_total", "body_memory_bytes", "answer_memory_bytes"})
TROUBLE: Final = (
    ("requests_refused_total", "requests refused"),
    ("requests_misdirected_total", "requests for another name (421)"),
    ("answers_failed_total", "answers failed"),
    ("answers_cut_total", "answers cut off"),
    ("module_failures_total", "module failures"),
    ("handshakes_failed_total", "handshakes failed"),
    ("clients_refused_total", "clients refused by their evidence"),
    ("deadlines_expired_total", "deadlines expired"),
    ("connections_over_limit_total", "connections over the limit"),
    ("connections_flooded_total", "connections cut for flooding"),
    ("frames_dropped_total", "frames dropped"),
    ("ring_full_total", "ring full"),
    ("rpc_timeouts_total", "host did not answer in time"),
    ("rpc_late_replies_total", "host answered too late"),
    ("log_lines_dropped_total", "log lines dropped"),
    ("certificates_rate_limited_total", "quotes over the rate"),
)


def add(commands: Subparsers) -> None:
    """Describe the command."""
    parser = commands.add_parser("top", description="Watch what a server does.", epilog=EPILOG)
    add_server(parser, "of role monitoring")
    parser.add_argument("--interval", type=float, default=2.0, metavar="SECONDS", help="default: %(default)s")
    parser.add_argument("--count", type=int, default=0, metavar="N", help="looks, then end; default: until Ctrl-C")
    parser.add_argument("--json", action="store_true", help="one JSON object a look, for machines")
    set_work(parser, _top)


def _top(parser: Parser, parsed: argparse.Namespace) -> int:
    if not INTERVAL_MIN <= parsed.interval <= 3600 or parsed.count < 0:
        parser.error(f"--interval is {INTERVAL_MIN} to 3600 seconds, --count not negative")
    with Look(lambda: Server(parser, parsed)) as look:
        before: dict[int, Reading] = {}
        looks = 0
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                began = time.monotonic()
                found = look.take(time.monotonic)
                now = {index: reading for index, reading in found.items() if reading is not None}
                if parsed.json:
                    _print(json.dumps(_document(before, now, len(found))) + "\n")
                else:
                    text = "\n".join(table(parsed.url, look.status, before, now, len(found)))
                    _print(f"{CLEAR if sys.stdout.isatty() else ''}{text}\n")
                before = now
                looks += 1
                if looks == parsed.count:
                    break
                time.sleep(max(0.0, parsed.interval - (time.monotonic() - began)))
    return os.EX_OK


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


class Look:
    """One kept connection, to whichever worker answers it: each shows all.

    Args: connect: makes an unused connection.
    """

    def __init__(self, connect: Callable[[], Server]) -> None:
        self._connect = connect
        self._server: Server | None = None
        self.status: dict[str, Any] = {}

    def __enter__(self) -> Look:
        return self

    def __exit__(self, *exception: object) -> None:
        self._leave()

    def take(self, clock: Callable[[], float]) -> dict[int, Reading | None]:
        """A reading of every worker, by index; None of one that does not answer. Raises: Refused."""
        kept = self._server
        if kept is not None:
            try:
                return self._read(kept, clock)
            except Refused:
                self._leave()  # it ended, or our evidence of it did
        self._server = self._connect()
        try:
            self.status = self._server.ask("GET", "/status")
            return self._read(self._server, clock)
        except BaseException:
            self._leave()
            raise

    def _leave(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()

    @staticmethod
    def _read(server: Server, clock: Callable[[], float]) -> dict[int, Reading | None]:
        from enclave_os.errors import ServerProtocolError
        from enclave_os_client.meter import read_metrics

        document = server.ask("GET", "/metrics")
        try:
            return read_metrics(document, clock())
        except ServerProtocolError as error:
            raise Refused(str(error), os.EX_PROTOCOL) from error


def table(
    url: str, status: Mapping[str, Any], before: Mapping[int, Reading], now: Mapping[int, Reading], said: int
) -> list[str]:
    """The picture of one look, as lines. Args: said: how many workers there are, those included that do not answer."""
    from enclave_os.evidence.exchange import printable
    from enclave_os_client.meter import names, rate

    mode, count = printable(str(status.get("mode", "?"))), len(now)
    workers = f"{count} worker{'' if count == 1 else 's'}" if count == said else f"{count} of {said} workers answer"
    words = f"{url}   {mode if mode == 'sgx' else mode.upper()}, {workers}"
    warnings = status.get("warnings")
    lines = [words, *[f"warning: {printable(str(text))}" for text in (warnings if isinstance(warnings, list) else [])]]
    lines += ["", _row("", ["all", *[f"worker {index}" for index in now]] if count > 1 else ["now"])]

    def cells(name: str) -> list[str]:
        values = [rate(name, before.get(index), reading) for index, reading in now.items()]
        shown = [sum(values), *values] if count > 1 else values
        return [_amount(name, value) for value in shown]

    listed = names(now.values())
    lines += [_row(text, cells(name)) for name, text in WORK if name in listed]
    known = {name for name, _ in (*WORK, *TROUBLE)}
    others = [name for name in listed if name not in known and name.startswith(("kv_", "vault_", "wasm_", "egress_"))]
    lines += [_row(_plain(name), cells(name)) for name in others if any(one.counters.get(name) for one in now.values())]
    trouble = [_row(text, _trouble(name, before, now)) for name, text in TROUBLE if _moved(name, now)]
    return [*lines, "", "went wrong since the start (since the last look)", *trouble] if trouble else lines


def _moved(name: str, now: Mapping[int, Reading]) -> bool:
    return any(reading.counters.get(name) for reading in now.values())


def _trouble(name: str, before: Mapping[int, Reading], now: Mapping[int, Reading]) -> list[str]:
    from enclave_os_client.meter import rise

    values = [(r.counters.get(name, 0), rise(name, before[i], r) if i in before else 0) for i, r in now.items()]
    shown = [(sum(v for v, _ in values), sum(d for _, d in values)), *values] if len(values) > 1 else values
    return [f"{total:,.0f} (+{new:,.0f})" if new else f"{total:,.0f}" for total, new in shown]


def _row(name: str, cells: Sequence[str]) -> str:
    return f"{name:<34}" + "".join(f"{cell:>16}" for cell in cells)


def _plain(name: str) -> str:
    return f"{name.removesuffix('_total').replace('_', ' ')}{' /s' if name.endswith('_total') else ''}"


def _amount(name: str, value: float) -> str:
    if name not in BYTES:
        return f"{value:,.1f}" if 0 < value < 10 and value != int(value) else f"{value:,.0f}"
    unit = "/s" if name.endswith("_total") else ""
    for size in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:,.1f} {size}{unit}" if size != "B" else f"{value:,.0f} B{unit}"
        value /= 1024
    return f"{value:,.1f} GiB{unit}"


def _document(before: Mapping[int, Reading], now: Mapping[int, Reading], said: int) -> dict[str, Any]:
    from enclave_os_client.meter import rate

    return {
        "time": int(time.time()),
        "worker_count": said,
        "workers": {
            str(index): {name: round(rate(name, before.get(index), reading), 3) for name in reading.counters}
            for index, reading in now.items()
        },
    }
