"""What Intel says of a platform, fetched for the enclave from Intel's PCS or a PCCS; or what a simulated platform says.

    GET <url>/sgx/certification/v4/tcb?fmspc=...            TCB info, its signature, its issuers in a header
    GET <url>/sgx/certification/v4/qe/identity              the Quoting Enclave's identity, likewise
    GET <url>/sgx/certification/v4/pckcrl?ca=...            which PCK certificates are revoked
    GET the root's CRL                                      of a PCCS beside the others, of Intel where its root says

Nothing is judged here: every part is signed and dated, and the enclave verifies its own quote with it before it shows
it to anybody. The texts that are signed are passed on byte by byte.
"""

from __future__ import annotations

import json
import ssl
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from enclave_os.wire.collateral_settings import Collateral
from enclave_os.wire.rpc import COLLATERAL_SIZE_MAX, FMSPC_SIZE, PCK_AUTHORITIES, Status

from ..simulated_platform import COLLATERAL_FILE, open_simulated_platform
from ..state import StateError
from . import Handler, Later, Refused

FETCH_SECONDS: Final = 15.0  # for each of the four answers
ANSWER_SIZE_MAX: Final = 64 << 10  # of each; a CRL has some 2 KiB, TCB info 5
ISSUER_SIZE_MAX: Final = 16 << 10
PATH: Final = "/sgx/certification/v4/"
INTEL_HOST: Final = "api.trustedservices.intel.com"
INTEL_ROOT_CRL: Final = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
TCB_ISSUERS: Final = ("TCB-Info-Issuer-Chain", "SGX-TCB-Info-Issuer-Chain")  # since version 4, and before
QE_ISSUERS: Final = ("SGX-Enclave-Identity-Issuer-Chain",)
CRL_ISSUERS: Final = ("SGX-PCK-CRL-Issuer-Chain",)


class FetchError(Exception):
    """It was not to be had; the text says which part, and why."""


def collateral_handler(settings: Collateral, platform: Path | None, say: Callable[[str], None]) -> Handler:
    """What answers COLLATERAL.

    Args:
        platform: folder of the simulated platform; None on SGX.
        say: a line for the operator. Any thread.
    Raises: StateError: the CA file cannot be read.
    """
    if platform is not None:
        return simulated_collateral(platform)
    if not settings.url:
        return _nothing
    try:
        return CollateralFetcher(settings.url, settings.ca_file, say).answer
    except (OSError, ssl.SSLError) as error:
        raise StateError(f"collateral.ca_file {settings.ca_file}: {error}") from error


def _nothing(payload: bytes) -> bytes:
    raise Refused(Status.FAILED)  # by configuration


def simulated_collateral(folder: Path) -> Handler:
    """COLLATERAL of the simulated platform in `folder`: renewed when it nears its end."""

    def answer(payload: bytes) -> bytes:
        try:
            open_simulated_platform(folder)
        except StateError as error:
            raise Refused(Status.FAILED) from error
        return (folder / COLLATERAL_FILE).read_bytes()

    return answer


class CollateralFetcher:
    """Answers COLLATERAL from a PCS or PCCS, in a thread of its own.

    Args:
        url: of the service, without the path.
        ca_file: PEM that its certificate must lead to; empty: the system's CAs.
        say: a line for the operator. Any thread.
    """

    def __init__(self, url: str, ca_file: str, say: Callable[[str], None]) -> None:
        self._url = url.rstrip("/")
        self._context = ssl.create_default_context(cafile=ca_file or None)
        self._say = say
        self._thread = ThreadPoolExecutor(1, "collateral")

    def answer(self, payload: bytes) -> Later:
        """COLLATERAL: answered when all four parts have come."""
        later = Later()
        self._thread.submit(self._fetch, payload[:FMSPC_SIZE], payload[FMSPC_SIZE], later)
        return later

    def close(self) -> None:
        """Start no further fetch."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _fetch(self, fmspc: bytes, authority: int, later: Later) -> None:
        try:
            if authority >= len(PCK_AUTHORITIES):
                raise FetchError("no such PCK CA")
            collateral = self.fetch(fmspc, PCK_AUTHORITIES[authority])
        except FetchError as error:
            self._say(f"no collateral from {self._url}: {error}")
            later.refuse(Status.FAILED)
        else:
            later.answer(collateral)

    def fetch(self, fmspc: bytes, authority: str) -> bytes:
        """The nine members as JSON. Raises: FetchError."""
        tcb, tcb_head = self._get(f"{PATH}tcb?fmspc={fmspc.hex()}")
        tcb_info, tcb_signature = _signed(tcb, "tcbInfo")
        qe, qe_head = self._get(f"{PATH}qe/identity")
        qe_identity, qe_signature = _signed(qe, "enclaveIdentity")
        crl, crl_head = self._get(f"{PATH}pckcrl?ca={authority}&encoding=der")
        intel = urlsplit(self._url).hostname == INTEL_HOST
        root_crl, _ = self._get(INTEL_ROOT_CRL if intel else f"{PATH}rootcacrl")
        document = {
            "pck_crl_issuer_chain": _issuers(crl_head, CRL_ISSUERS),
            "root_ca_crl": _der(root_crl).hex(),
            "pck_crl": _der(crl).hex(),
            "tcb_info_issuer_chain": _issuers(tcb_head, TCB_ISSUERS),
            "tcb_info": tcb_info,
            "tcb_info_signature": tcb_signature,
            "qe_identity_issuer_chain": _issuers(qe_head, QE_ISSUERS),
            "qe_identity": qe_identity,
            "qe_identity_signature": qe_signature,
        }
        made = json.dumps(document).encode()
        if len(made) > COLLATERAL_SIZE_MAX:
            raise FetchError(f"{len(made)} bytes in all; at most {COLLATERAL_SIZE_MAX} can be passed")
        return made

    def _get(self, where: str) -> tuple[bytes, HTTPMessage]:
        url = where if where.startswith("https://") else self._url + where
        try:
            with urllib.request.urlopen(url, timeout=FETCH_SECONDS, context=self._context) as reply:
                body = reply.read(ANSWER_SIZE_MAX + 1)
                head: HTTPMessage = reply.headers
        except (OSError, HTTPException) as error:  # URLError is an OSError
            raise FetchError(f"{url}: {error}") from error
        if len(body) > ANSWER_SIZE_MAX:
            raise FetchError(f"{url}: more than {ANSWER_SIZE_MAX} bytes")
        return body, head


def _signed(body: bytes, name: str) -> tuple[str, str]:
    """The text of the member that is signed, as it stands there, and its signature. Raises: FetchError."""
    try:
        text = body.decode()
        signature = json.loads(text)["signature"]
        begin = text.index(f'"{name}":') + len(name) + 3
        while text[begin].isspace():
            begin += 1
        _, end = json.JSONDecoder().raw_decode(text, begin)
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise FetchError(f"{name}: not as a PCS answers") from error
    if not isinstance(signature, str):
        raise FetchError(f"{name}: its signature is no text")
    return text[begin:end], signature


def _issuers(head: HTTPMessage, names: tuple[str, ...]) -> str:
    """A chain from the first of these headers that is there: PEM, percent-encoded. Raises: FetchError."""
    found = next((head[name] for name in names if head[name]), "")
    if not found or len(found) > ISSUER_SIZE_MAX:
        raise FetchError(f"the header {names[0]} is missing, or too long")
    return unquote(found)


def _der(body: bytes) -> bytes:
    """A CRL: DER, or its hexadecimal digits, as a PCCS answers. Raises: FetchError."""
    if body[:1] == b"\x30":
        return body
    try:
        return bytes.fromhex(body.decode("ascii").strip().strip('"'))
    except ValueError as error:
        raise FetchError("a CRL is neither DER nor hexadecimal") from error
