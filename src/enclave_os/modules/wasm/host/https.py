"""`privasys:enclave-os/https`: requests to whom the operator lets this module call, with TLS that ends in the enclave.

The operator's `[[egress.allow]]` names the hosts and the operator's bundle the CAs; an app cannot bring CAs of its own.
With `ratls` the server must prove, over this TLS session and before a byte of the request leaves, that it is the
enclave that the app names. What of a policy cannot be held is refused: nothing that an app asks for is left out. To a
server that asks back nothing is shown: our evidence is the enclave's, and what it is given for that is no app's.
"""

from __future__ import annotations

from typing import Any, Final

from enclave_os.errors import EgressError, UsageError
from enclave_os.evidence.policy import Policy
from enclave_os.modules.wasm.host.context import CallContext, err, ok
from enclave_os.wasm import Interface

HEADERS_MAX: Final = 100


def _fetch(context: CallContext, request: dict[str, Any]) -> tuple[str, Any]:
    if request["ca-roots-der"] is not None:
        return err("ca-roots-der: roots of an app's own are not taken: the operator's CA bundle counts")
    if len(request["headers"]) > HEADERS_MAX:
        return err(f"a request has at most {HEADERS_MAX} headers")
    try:
        attested = None if request["ratls"] is None else policy_of(request["ratls"])
        answer = context.wait(
            context.means.egress.request(
                request["method"].upper(),
                request["url"],
                headers=list(request["headers"]),
                content=request["body"],
                timeout=context.remaining(),
                size_max=context.means.response_bytes,
                attested=attested,
                present=False,
            )
        )
    except (EgressError, UsageError) as error:
        return err(str(error))
    headers = [(str(name), str(value)) for name, value in answer.headers.items()]
    return ok({"status": answer.status_code, "headers": headers, "body": answer.content})


def policy_of(ratls: dict[str, Any]) -> Policy:
    """What a server must prove. Raises: UsageError: what cannot be held, or a value that can never match."""
    if ratls["tee"] != "sgx" or ratls["mr-td"] is not None:
        raise UsageError("ratls: only SGX enclaves can be verified from here")
    if ratls["mr-enclave"] is None:
        raise UsageError("ratls: mr-enclave names whom to accept; a signer alone signs many products")
    if ratls["mr-signer"] is not None:
        raise UsageError("ratls: mr-enclave says it all; leave mr-signer out")
    if ratls["challenge-nonce"] is not None:
        raise UsageError("ratls: challenge-nonce is not needed: evidence is bound to this very TLS session")
    if ratls["attestation-servers"]:
        raise UsageError("ratls: no attestation server is asked: quotes are verified inside, by Intel's collateral")
    oids = {entry["oid"]: entry["value"] for entry in ratls["expected-oids"]}
    return Policy(mr_enclaves=frozenset({ratls["mr-enclave"]}), oids=oids)


INTERFACES: Final = (Interface("privasys:enclave-os/https", ("0.1.0",), {"fetch": _fetch}, {}),)
