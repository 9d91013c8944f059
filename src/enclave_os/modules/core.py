"""The server's own routes: health, readiness, status, counters, shutdown. Always loaded, asked first."""

import re
from collections.abc import Mapping
from typing import Final

from enclave_os import __version__
from enclave_os.errors import InternalError
from enclave_os.http import Request, Response, json_response
from enclave_os.modules.api import MANAGER, MONITORING, NO_STORE, Module, Route, Services

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

    def status(self, request: Request) -> Response:
        """What runs here."""
        services = self._given()
        status = services.status()
        return Response(
            200,
            {
                "version": __version__,
                "mode": status.mode,
                "evidence": status.evidence,
                "ca": status.ca,
                "worker": {"index": status.worker_index, "count": status.worker_count},
                "ready": status.ready,
                "uptime_seconds": round(status.uptime_s, 3),
                "modules": list(services.modules),
                "warnings": list(status.warnings),
            },
            headers=(NO_STORE,),
        )

    def metrics(self, request: Request) -> Response:
        """This worker's counters: JSON, or the Prometheus text format when Accept names it."""
        services = self._given()
        counters = services.counters()
        index = services.status().worker_index
        headers = (NO_STORE, ("Vary", "Accept"))
        if wants_prometheus(request.headers.get("accept", "")):
            return Response(200, prometheus_text(counters, index), PROMETHEUS_TYPE, headers)
        return json_response({"worker": index, "counters": dict(counters)}, headers=headers)

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


def prometheus_text(counters: Mapping[str, int | float], worker_index: int) -> str:
    """The text exposition format 0.0.4: a type for each name, a value for each of its labels, and the worker's.

    Counters of one name follow each other.

    Raises:
        InternalError: a name that Prometheus would not read.
    """
    lines = []
    last = ""
    for name, value in counters.items():
        match = METRIC_NAME.match(name)
        if match is None:
            raise InternalError(f"{name!r} is not a metric's name")
        base, labels = match["base"], match["labels"]
        if base != last:
            lines.append(f"# TYPE {METRIC_PREFIX}{base} {'counter' if base.endswith('_total') else 'gauge'}\n")
            last = base
        more = f",{labels}" if labels else ""
        lines.append(f'{METRIC_PREFIX}{base}{{worker="{worker_index}"{more}}} {value}\n')
    return "".join(lines)
