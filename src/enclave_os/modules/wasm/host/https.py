"""`privasys:enclave-os/https`: requests to whom the operator lets this module call, with TLS that ends in the enclave.

The operator's `[[egress.allow]]` names the hosts and the operator's bundle the CAs. An app cannot bring CAs of its own,
and `ratls` names what the server must prove: those of its members that the enclave can hold a server to.
"""

from __future__ import annotations

from typing import Any, Final

from enclave_os.errors import EgressError
from enclave_os.modules.wasm.host.context import CallContext, err, ok
from enclave_os.wasm import Interface

HEADERS_MAX: Final = 100
SIZE_MAX: Final = 4 << 20


def _fetch(context: CallContext, request: dict[str, Any]) -> tuple[str, Any]:
    if request.get("ca-roots-der") is not None:
        return err("roots of an app's own are not taken: the operator's CA bundle counts")
    if request.get("ratls") is not None:
        return err("attested servers are not reached from an app yet: leave ratls out")
    if len(request["headers"]) > HEADERS_MAX:
        return err(f"a request has at most {HEADERS_MAX} headers")
    body = request["body"]
    try:
        answer = context.wait(
            context.means.egress.request(
                request["method"].upper(),
                request["url"],
                headers=list(request["headers"]),
                content=body,
                timeout=context.remaining(),
                size_max=context.means.response_bytes,
            )
        )
    except EgressError as error:
        return err(str(error))
    headers = [(str(name), str(value)) for name, value in answer.headers.items()]
    return ok({"status": answer.status_code, "headers": headers, "body": answer.content})


INTERFACES: Final = (Interface("privasys:enclave-os/https", ("0.1.0",), {"fetch": _fetch}, {}),)
