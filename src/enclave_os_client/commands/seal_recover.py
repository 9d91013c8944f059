"""`enclave-os seal unwrap` and `seal recover`: the owner opens what the platform's key no longer does.

    offline    config.sealed, the owner's private key, the blob key that was noted ──> a grant: data key and signature
    online     the grant ──> the enclave, once it has proved itself over this very session

The host has the blob and the owner's public key, so it can make blobs that the owner's key unwraps. What it cannot make
is the signature of a blob key that the owner noted while the true enclave attested it: so that is asked for first.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from enclave_os.evidence.protocol import RECOVER_PATH, b64url, read_b64url, read_hex
from enclave_os.evidence.strict_json import load_object

from .manage import EXIT_CODES, Refused, add_server, ask, say, set_work

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import rsa

    from enclave_os.sealing.blob import Blob
    from enclave_os.sealing.sealed_config import SealedConfig

    from .parser import Parser, Subparsers

FORMAT: Final = 1
GRANT_MEMBERS: Final = frozenset({"format", "measurement", "blob_sha256", "data_key", "signature"})
GRANT_SIZE_MAX: Final = 16 << 10
KEY_FILE_SIZE_MAX: Final = 64 << 10

EPILOG: Final = """\
The processor's sealing key has changed (new microcode, a new board, another machine), and the start says that the
sealed configuration does not open. With a second wrap (seal.owner_public_key_pem) its owner opens it:

  before it happens  note the blob key of the true enclave, which it attests:
      enclave-os seal status --url https://enclave.example --token monitor.token --mrenclave 4f3c...e1
  1. on the server: start it to wait for the owner; it serves nothing else, and ends afterwards
      enclave-os serve --config site.toml --recover
  2. where the owner's private key is, offline, with <state folder>/sealed/<measurement>/config.sealed:
      enclave-os seal unwrap config.sealed --key owner.pem --blob-key 9c...40 --grant grant.json
  3. anywhere: sends the grant to an enclave of the measurement that sealed the file, once it has proved itself
      enclave-os seal recover --url https://enclave.example --grant grant.json
  4. on the server: enclave-os serve --config site.toml; then destroy grant.json, which opens the former file

Clients see it: the boot count goes on, and seal.recovered is a leaf from then on.
"""
UNVERIFIED: Final = (
    "NOT VERIFIED: without --blob-key nothing tells this file from one that somebody made who knows the owner's public "
    "key (the host does), with a master key of his. Look at all that is printed below before you let an enclave open it"
)


def add(names: Subparsers) -> None:
    """Describe both commands, among the actions of `seal`."""
    unwrap = names.add_parser("unwrap", description="Open a sealed configuration as its owner, offline.", epilog=EPILOG)
    unwrap.add_argument("file", type=Path, metavar="FILE", help="config.sealed, as it lies at the host")
    unwrap.add_argument("--key", type=Path, required=True, metavar="FILE", help="the owner's RSA private key, PEM")
    known = unwrap.add_mutually_exclusive_group(required=True)
    known.add_argument("--blob-key", metavar="HEX", help="as noted from seal status: who must have signed the file")
    known.add_argument("--unverified", action="store_true", help="no blob key was noted; see what is printed then")
    unwrap.add_argument("--boot-min", type=int, default=1, metavar="N", help="refuse a file of an earlier boot")
    unwrap.add_argument("--grant", type=Path, metavar="FILE", help="write the grant here, a new file: it is secret")
    set_work(unwrap, _unwrap)
    recover = names.add_parser("recover", description="Let an enclave open what its owner unwrapped.",
                               epilog=f"{EPILOG}\n{EXIT_CODES}")  # fmt: skip
    recover.add_argument("--grant", type=Path, required=True, metavar="FILE", help="what seal unwrap wrote")
    add_server(recover, None)
    set_work(recover, _recover)


def _unwrap(parser: Parser, parsed: argparse.Namespace) -> int:
    from enclave_os.errors import SealBroken
    from enclave_os.sealing import blob, sealed_config
    from enclave_os.wire.rpc import SEALED_SIZE_MAX

    with parsed.file.open("rb") as stream:
        data = stream.read(SEALED_SIZE_MAX + 1)
    try:
        found = blob.parse(data)
        _check_blob_key(parser, parsed, found)
        private_key = _private_key(parsed.key)
        data_key = blob.unwrap_as_owner(found, private_key)
        config = sealed_config.decode(blob.open_with_data_key(found, data_key))
        blob.check_signer(found, config.master_key)
        signature = blob.grant(found, private_key)
        blob.check_grant(found, _owner_key(config), signature)  # what the enclave will ask
    except SealBroken as error:
        raise Refused(f"{parsed.file}: {error}", os.EX_DATAERR) from error
    if config.boot_count < parsed.boot_min:
        raise Refused(
            f"{parsed.file} is of boot {config.boot_count}, before --boot-min {parsed.boot_min}: an older one is there",
            os.EX_DATAERR,
        )
    if parsed.unverified:
        print(f"enclave-os: {UNVERIFIED}", file=sys.stderr)
    say(*_lines(found, config))
    if parsed.grant is None:
        print("no grant was written: give --grant FILE to let an enclave open it")
        return os.EX_OK
    _write_grant(
        parsed.grant,
        {
            "format": FORMAT,
            "measurement": found.measurement.hex(),
            "blob_sha256": found.sha256.hex(),
            "data_key": b64url(data_key),
            "signature": b64url(signature),
        },
    )
    print(f"{parsed.grant} opens this file: bring it to the enclave with enclave-os seal recover, then destroy it")
    return os.EX_OK


def _recover(parser: Parser, parsed: argparse.Namespace) -> int:
    grant = _read_grant(parsed.grant)
    if not parsed.mrenclave and not parsed.mrsigner:
        parsed.mrenclave = [grant["measurement"]]
    elif parsed.mrenclave != [grant["measurement"]]:
        parser.error(f"what was unwrapped is of measurement {grant['measurement']}: no other enclave opens it")
    document = {"data_key": grant["data_key"], "signature": grant["signature"]}
    found = ask(parser, parsed, "POST", RECOVER_PATH, document)
    say(f"recovered, as boot {found.number('boot_count')}: the server ends now; start it without --recover")
    return os.EX_OK


def _check_blob_key(parser: Parser, parsed: argparse.Namespace, found: Blob) -> None:
    from enclave_os.errors import SealBroken

    if parsed.unverified:
        return
    try:
        wanted = read_hex(parsed.blob_key)
    except ValueError as error:
        parser.error(f"--blob-key {parsed.blob_key}: {error}")
    if wanted != found.blob_key:
        raise SealBroken(
            f"it is signed by blob key {found.blob_key.hex()}, and not by the one that was noted: it is not that "
            "enclave's; do not unwrap it"
        )


def _private_key(path: Path) -> rsa.RSAPrivateKey:
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    with path.open("rb") as stream:
        pem = stream.read(KEY_FILE_SIZE_MAX)
    try:
        try:
            key = load_pem_private_key(pem, None)
        except TypeError:  # it has a password
            key = load_pem_private_key(pem, getpass.getpass(f"password of {path}: ").encode())
    except ValueError as error:
        raise Refused(f"{path}: not a private key in PEM, or another password", os.EX_DATAERR) from error
    if not isinstance(key, rsa.RSAPrivateKey):
        raise Refused(f"{path}: the owner's key is an RSA key", os.EX_DATAERR)
    return key


def _owner_key(config: SealedConfig) -> str:
    from enclave_os.errors import SealBroken
    from enclave_os.wire.policy import owner_key_of

    owner_key = owner_key_of(config.policy)
    if owner_key is None:
        raise SealBroken("its policy has no owner, so no enclave opens it by an owner's leave")
    return owner_key


def _lines(found: Blob, config: SealedConfig) -> list[str]:
    """What the owner should look at before anything opens this."""
    from hashlib import sha256

    policy: dict[str, Any] = json.loads(config.policy)
    ranges = len(config.kv_states)
    rows = [
        ("measurement", found.measurement.hex()),
        ("blob key", found.blob_key.hex()),
        ("boot", str(config.boot_count)),
        ("store", f"version {config.state()[2]}" + (f", {ranges} ranges" if ranges > 1 else "")),
        ("policy", f"SHA-256 {sha256(config.policy).hexdigest()}, changed {config.policy_changes} times"),
        *[("  token issuer", f"{one['issuer']} for {one['audience']}") for one in policy["issuers"]],
        ("  modules", ", ".join(policy["modules"]) or "none"),
        ("  export", policy["export"]),
        *[("approved for export", measurement.hex()) for measurement in config.exports],
        ("recovered", f"{config.recoveries} times before"),
    ]
    return [f"{name:<20}  {text}" for name, text in rows]


def _write_grant(path: Path, document: dict[str, Any]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as stream:
        stream.write(json.dumps(document, indent=1) + "\n")


def _read_grant(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        data = stream.read(GRANT_SIZE_MAX)
    try:
        grant = load_object(data)
        if set(grant) != GRANT_MEMBERS or grant["format"] != FORMAT:
            raise ValueError("it has other members")
        for name in ("data_key", "signature"):
            read_b64url(grant[name])
        read_hex(grant["measurement"])
    except ValueError as error:
        raise Refused(f"{path} is not what seal unwrap writes", os.EX_DATAERR) from error
    return grant
