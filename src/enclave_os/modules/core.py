"""The server's own routes: health, readiness, status, counters, shutdown. Always loaded, asked first."""

import re
from collections.abc import Awaitable, Sequence
from typing import Final

from enclave_os import __version__
from enclave_os.errors import InternalError
from enclave_os.http import Request, Response, json_response
from enclave_os.modules.api import MANAGER, MONITORING, NO_STORE, Module, Route, Services, WorkerReport

READY: Final = Response(200, {"status": "ready"})
NOT_READY: Final = Response(503, {"status": "not ready"})
DRAINING: Final = Response(202, {"status": "draining"})

METRIC_PREFIX: Final = "enclave_os_"
METRIC_NAME: Final = re.compile(
    r"""(?P<base>[a-z][a-z0-9_]*)(?:\{(?P<labels>[a-z_]+="[^"\\\n{}]*"(?:,[a-z_]+="[^"\\\n{}]*")*)\})?\Z""", re.ASCII
)
"""A name, with labels or without: `calls_total`, `calls_total{app="notes"}`."""
# https://prometheus.io/docs/instrumenting/exposition_formats/: the text format's version, in Accept and Content-Type
PROMETHEUS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Core(Module):
    """`/healthz` and `/readyz` for everybody, `/status` and `/metrics` for monitoring, `/shutdown` for a manager."""

    name = "core"

    def __init__(self) -> None:
        self._services: Services | None = None
        self._healthy: Response | None = None
        self.routes = [
            Route("GET", "/healthz", self.healthz),
            Route("GET", "/readyz", self.readyz),
            Route("GET", "/status", self.status, MONITORING),
            Route("GET", "/metrics", self.metrics, MONITORING),
            Route("POST", "/shutdown", self.shutdown, MANAGER),
        ]

    def start(self, services: Services) -> None:
        """Take the services; what `/healthz` says is true for the whole run, so it is encoded once."""
        self._services = services
        status = services.status()
        self._healthy = Response(
            200,
            {
                "status": "ok",
                "version": __version__,
                "mode": status.mode,
                "evidence": status.evidence,
                "ca": status.ca,
            },
        )

    def stop(self) -> None:
        """Let go of the services."""
        self._services = self._healthy = None

    def healthz(self, request: Request) -> Response:
        """Alive, and how much to believe: mode, evidence and CA, as the certificate says them too."""
        if self._healthy is None:
            raise InternalError("core is not started")
        return self._healthy

    def readyz(self, request: Request) -> Response:
        """Whether to send more clients here."""
        return READY if self._given().status().ready else NOT_READY

    def status(self, request: Request) -> Awaitable[Response]:
        """What runs here: of this worker, and how each of the others does."""
        return self._status(self._given())

    async def _status(self, services: Services) -> Response:
        workers = await services.workers()
        status = services.status()
        warnings = dict.fromkeys((*status.warnings, *(text for worker in workers for text in worker.warnings)))
        return json_response(
            {
                "version": __version__,
                "mode": status.mode,
                "evidence": status.evidence,
                "ca": status.ca,
                "worker": {"index": status.worker_index, "count": status.worker_count},
                "ready": status.ready,
                "uptime_seconds": round(status.uptime_s, 3),
                "modules": list(services.modules),
                "warnings": list(warnings),
                "workers": [
                    {
                        "index": worker.index,
                        "up": worker.up,
                        "ready": worker.ready,
                        "uptime_seconds": round(worker.uptime_s, 3),
                    }
                    for worker in workers
                ],
            },
            headers=(NO_STORE,),
        )

    def metrics(self, request: Request) -> Awaitable[Response]:
        """Counters of every worker: JSON, or the Prometheus text format when Accept names it.

        Whichever worker is asked, all are shown; one that does not answer is shown as down.
        """
        return self._metrics(self._given(), wants_prometheus(request.headers.get("accept", "")))

    async def _metrics(self, services: Services, for_prometheus: bool) -> Response:
        workers = await services.workers()
        headers = (NO_STORE, ("Vary", "Accept"))
        if for_prometheus:
            return Response(200, prometheus_text(workers), PROMETHEUS_TYPE, headers)
        document = {
            "worker": services.status().worker_index,
            "counters": dict(services.counters()),
            "workers": [
                {"index": worker.index, "up": worker.up, "counters": dict(worker.counters)} for worker in workers
            ],
        }
        return json_response(document, headers=headers)

    def shutdown(self, request: Request) -> Response:
        """Begin the drain; this answer still goes out."""
        self._given().request_stop()
        return DRAINING

    def _given(self) -> Services:
        if self._services is None:
            raise InternalError("core is not started")
        return self._services


def wants_prometheus(accept: str) -> bool:
    """Whether an Accept field names a text format that Prometheus reads. `*/*` alone does not: JSON is the default."""
    types = (part.partition(";")[0].strip().lower() for part in accept.split(","))
    return any(kind in ("text/plain", "application/openmetrics-text") for kind in types)


def prometheus_text(workers: Sequence[WorkerReport]) -> str:
    """The text exposition format 0.0.4: a type for each name, and below it a value for each worker and set of labels.

    What a worker that does not answer has counted is left out, and `worker_up` says so: a sum is known to be one over
    the others, and not a fall of all that was counted.

    Raises:
        InternalError: a name that Prometheus would not read.
    """
    found: dict[str, list[str]] = {"worker_up": [f'{{worker="{worker.index}"}} {int(worker.up)}' for worker in workers]}
    for worker in workers:
        for name, value in worker.counters.items():
            match = METRIC_NAME.match(name)
            if match is None:
                raise InternalError(f"{name!r} is not a metric's name")
            more = f",{match['labels']}" if match["labels"] else ""
            found.setdefault(match["base"], []).append(f'{{worker="{worker.index}"{more}}} {value}')
    lines = []
    for base, values in found.items():
        name = f"{METRIC_PREFIX}{base}"
        lines.append(f"# TYPE {name} {'counter' if base.endswith('_total') else 'gauge'}\n")
        lines += [f"{name}{value}\n" for value in values]
    return "".join(lines)
