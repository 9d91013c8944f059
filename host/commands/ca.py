"""`enclave-os ca`: the root for development, the enclave's request, and the certificate that answers it.

The intermediary's key is made inside the enclave and never comes out; all that is here is public but the development
root's key.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from enclave_os.wire.rpc import CHAIN_LENGTH_MAX, CHAIN_SIZE_MAX
from enclave_os.wire.setting_table import Settings

from ..ca import open_development_ca
from ..certificates import write_whole
from ..handlers.ca import CHAIN_FILE, REQUEST_FILE
from ..handlers.seal import FOLDER
from ..state import StateError, make_private_folder

if TYPE_CHECKING:
    from .parser import Parser, Subparsers

SHOWN_DIGITS: Final = 16

EPILOG: Final = """\
The enclave makes the key of its intermediary CA itself, and that key never leaves it. What comes out is a request, what
goes in is a certificate:

  development (ca.mode = "development", the default)
    enclave-os ca init                   the root that signs the request at once; the first start does it as well
  your own CA (ca.mode = "operator")
    enclave-os serve ...                 once: it writes its request, says so, and ends
    enclave-os ca csr > enclave.csr      for whoever signs; it must become a CA certificate (CA:TRUE, pathlen 0)
    enclave-os ca install chain.pem      the certificate, then those above it
    enclave-os serve ...                 serves

To renew the certificate, or to change the CA: have the same request signed again, `ca install`, restart.

exit codes: 0 done, 64 wrong arguments, 65 not a certificate for this enclave, 66 a file cannot be read or is not there,
73 a file cannot be made, 78 the configuration, or the state folder, is wrong
"""


class Unfit(Exception):
    """What was brought cannot be installed; the text says why and what to do."""


def describe(commands: Subparsers) -> Sequence[Parser]:
    """Describe the command. Returns: the parsers that take the configuration's sources."""
    group = commands.add_parser("ca", help="the CA that signs the enclave's certificates", epilog=EPILOG)
    names = group.add_subparsers(dest="action", required=True, metavar="init|csr|install")
    init = names.add_parser("init", help="make the development root", epilog=EPILOG)
    csr = names.add_parser("csr", help="print the enclave's request", epilog=EPILOG)
    csr.add_argument("--measurement", default="", metavar="HEX", help="of which enclave; its first digits are enough")
    install = names.add_parser("install", help="put the certificate where the enclave finds it", epilog=EPILOG)
    install.add_argument("file", type=Path, metavar="FILE", help="PEM: the certificate, then those above it")
    return init, csr, install


def run(parsed: argparse.Namespace, settings: Settings) -> int:
    """Run one action. Returns: the exit code."""
    state = Path(settings.server.state_dir)
    try:
        if parsed.action == "init":
            return _init(state, settings.ca.mode)
        if parsed.action == "csr":
            return _print_request(state, parsed.measurement)
        return _install(state, parsed.file)
    except Unfit as error:
        print(f"enclave-os: {error}", file=sys.stderr)
        return os.EX_DATAERR
    except StateError as error:
        print(f"enclave-os: {error}", file=sys.stderr)
        return os.EX_CONFIG
    except OSError as error:
        print(f"enclave-os: {error.filename}: {error.strerror}", file=sys.stderr)
        return os.EX_NOINPUT if isinstance(error, FileNotFoundError) else os.EX_CANTCREAT


def check_chain(chain: Sequence[x509.Certificate], now: datetime.datetime) -> None:
    """Whether a chain, its signing CA first, can sign an enclave's leaves. Raises: Unfit."""
    if not 1 <= len(chain) <= CHAIN_LENGTH_MAX:
        raise Unfit(f"the file holds {len(chain)} certificates; 1 to {CHAIN_LENGTH_MAX} are taken")
    for certificate in chain:
        _check_authority(certificate, now)
    for certificate, issuer in itertools.pairwise(chain):
        try:
            certificate.verify_directly_issued_by(issuer)
        except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise Unfit(
                f"{_name(certificate)} is not signed by the one after it, {_name(issuer)}: put the enclave's "
                "certificate first and each one's issuer behind it"
            ) from error


def _init(state: Path, mode: str) -> int:
    make_private_folder(state)
    made = open_development_ca(state)
    print(f"{made.root_file}: {'made' if made.created else 'is there already, and is kept'}")
    print("the enclave makes its intermediary's key itself when it starts, and this root signs the request at once")
    print("for development: whoever can read this folder can sign another enclave", file=sys.stderr)
    if mode != "development":
        print(f'ca.mode is "{mode}", so this root signs nothing: see enclave-os ca --help', file=sys.stderr)
    return os.EX_OK


def _print_request(state: Path, prefix: str) -> int:
    found = [(folder, request) for folder, request in _requests(state) if folder.name.startswith(prefix.lower())]
    if not found:
        of = f" of measurement {prefix}..." if prefix else ""
        print(
            f"enclave-os: there is no request{of} in {state / FOLDER}: the enclave makes its key, and this request, "
            'when it first starts.\nRun enclave-os serve once; with ca.mode = "operator" it then ends by itself',
            file=sys.stderr,
        )
        return os.EX_NOINPUT
    if len(found) > 1:
        print("enclave-os: several enclaves have a request here; choose one with --measurement:", file=sys.stderr)
        for folder, _ in found:
            print(f"  {folder.name}", file=sys.stderr)
        return os.EX_USAGE
    folder, request = found[0]
    print(f"the request of measurement {folder.name}", file=sys.stderr)
    print(request.public_bytes(Encoding.PEM).decode("ascii"), end="")
    return os.EX_OK


def _install(state: Path, file: Path) -> int:
    with file.open("rb") as stream:
        data = stream.read(CHAIN_SIZE_MAX + 1)
    if len(data) > CHAIN_SIZE_MAX:
        raise Unfit(f"{file} is bigger than {CHAIN_SIZE_MAX} bytes, which is the most that a chain may have")
    try:
        chain = x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise Unfit(f"{file} holds no certificates in PEM") from error
    check_chain(chain, datetime.datetime.now(datetime.UTC))
    ours = [folder for folder, request in _requests(state) if _key(request) == _key(chain[0])]
    if not ours:
        raise Unfit(
            f"{_name(chain[0])} is for another key than that of any enclave here: what has to be signed is its own "
            "request, which enclave-os ca csr prints"
        )
    for folder in ours:
        write_whole(folder / CHAIN_FILE, b"".join(one.public_bytes(Encoding.PEM) for one in chain), 0o644)
        print(f"installed for measurement {folder.name[:SHOWN_DIGITS]}...: {folder / CHAIN_FILE}")
    print("it is in force after the next start of the server")
    return os.EX_OK


def _requests(state: Path) -> Iterator[tuple[Path, x509.CertificateSigningRequest]]:
    sealed = state / FOLDER
    for folder in sorted(sealed.iterdir()) if sealed.is_dir() else ():
        try:
            request = x509.load_pem_x509_csr((folder / REQUEST_FILE).read_bytes())
        except FileNotFoundError:
            continue
        except ValueError as error:
            raise StateError(f"{folder / REQUEST_FILE} is damaged; the next start writes it anew") from error
        yield folder, request


def _check_authority(certificate: x509.Certificate, now: datetime.datetime) -> None:
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise Unfit(
            f"{_name(certificate)} is not in force: from {certificate.not_valid_before_utc} to "
            f"{certificate.not_valid_after_utc}"
        )
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        usage = _signs_certificates(certificate.extensions)
    except (x509.ExtensionNotFound, ValueError):
        constraints, usage = False, False
    if not constraints or not usage:
        raise Unfit(
            f"{_name(certificate)} is no CA's: it needs basicConstraints CA:TRUE, and keyCertSign if it has a keyUsage"
        )


def _signs_certificates(extensions: x509.Extensions) -> bool:
    try:
        return extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except x509.ExtensionNotFound:
        return True


def _key(subject: x509.Certificate | x509.CertificateSigningRequest) -> bytes:
    return subject.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _name(certificate: x509.Certificate) -> str:
    return f"the certificate {certificate.subject.rfc4514_string()[:80]!r}"
