"""`enclave-os vault key`: keys that stay in the enclave, and what they are used for."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from enclave_os.evidence.protocol import b64url, read_b64url
from enclave_os_client.answer import Answer

from .files import read_input, write_output
from .manage import EXIT_CODES, TRUST, Refused, Server, say
from .vault_requests import Work, add_command, add_policy, listed, policy, target

if TYPE_CHECKING:
    from .parser import Parser, Subparsers

MESSAGE_SIZE_MAX: Final = 1 << 20
CIPHERTEXT_SIZE_MAX: Final = 2 << 20
TYPES: Final = ("aes256-gcm", "ecdsa-p256", "hmac-sha256")
EX_INVALID: Final = 1

EPILOG: Final = f"""\
examples (S as in enclave-os vault --help):
  enclave-os vault key create alice/app --type aes256-gcm $S
  enclave-os vault key wrap alice/app --context file:7 $S < plain > wrapped
  enclave-os vault key unwrap alice/app --context file:7 $S < wrapped > plain
  enclave-os vault key rotate alice/app $S
  enclave-os vault key rewrap alice/app --context file:7 $S < wrapped > wrapped-again
  enclave-os vault key create alice/ci --type ecdsa-p256 $S
  enclave-os vault key sign alice/ci --file release.tar > release.sig $S
  enclave-os vault key verify alice/ci --file release.tar --signature release.sig $S

What is signed, wrapped or authenticated comes from standard input or --file. A message is at most 1 MiB; larger files
are signed by their SHA-256 (--digest HEX).

{TRUST}
{EXIT_CODES}"""


def add(names: Subparsers) -> None:
    """Describe the command."""
    group = names.add_parser("key", description="Keys that stay in the enclave.", epilog=EPILOG)
    keys = group.add_actions("key_action")

    create = _command(keys, "create", "Make a key.", _create)
    create.add_argument("--type", choices=TYPES, required=True, help="what it is for: wrap, sign, hmac")
    create.add_argument("--exportable", action="store_true", help="it may leave; never changes afterwards")
    for name, text, work in (
        ("show", "Print a key's versions, and public keys.", _shows("GET", "")),
        ("rotate", "Make a new version, which works from now on.", _shows("POST", "/rotate")),
    ):
        _command(keys, name, text, work)
    destroy = _command(keys, "destroy", "Destroy versions, or with --all the key: what they made is lost.", _destroy)
    which = destroy.add_mutually_exclusive_group(required=True)
    which.add_argument("--versions", metavar="N,N", help="these")
    which.add_argument("--all", action="store_true", help="every version, and the key itself")
    export = _command(keys, "export", "Print the key itself, of one that was made to leave.", _export)
    export.add_argument("--version", type=int, metavar="N", help="default: the latest")
    export.add_argument("--out", type=Path, metavar="FILE", help="write it to a new file that only you can read")
    add_policy(_command(keys, "policy", "Print the policy of a key, or set it.", _policy))

    for name, text, work in (
        ("wrap", "Encrypt.", _wrap),
        ("unwrap", "Decrypt what wrap gave.", _unwrap),
        ("rewrap", "The same ciphertext under the latest version; the plaintext stays in the enclave.", _rewrap),
    ):
        command = _command(keys, name, text, work)
        command.add_argument("--file", type=Path, metavar="FILE", help="default: standard input")
        command.add_argument("--out", type=Path, metavar="FILE", help="a new file; default: standard output")
        command.add_argument("--context", default="", help="what it belongs to; unwrap needs the same")
    for name, text, work in (
        ("sign", "Sign (ECDSA, DER); prints base64url.", _sign),
        ("verify", "Check a signature.", _verify),
        ("hmac", "Authenticate; prints base64url.", _hmac),
        ("hmac-verify", "Check what hmac gave.", _hmac_verify),
    ):
        command = _command(keys, name, text, work)
        command.add_argument("--file", type=Path, metavar="FILE", help="the message; default: standard input")
        if name in ("sign", "verify"):
            command.add_argument("--digest", metavar="HEX", help="its SHA-256 instead")
        if "verify" in name:
            command.add_argument("--signature", type=Path, required=True, metavar="FILE", help="what was printed")
            command.add_argument("--version", type=int, default=0, metavar="N", help="of the key; default: the latest")

    below = add_command(keys, "list", "List the keys that you may see.", _list)
    below.add_argument("path", nargs="?", default="", metavar="PREFIX", help="only below it")


def _command(names: Subparsers, name: str, text: str, work: Work) -> Parser:
    parser = add_command(names, name, text, work)
    parser.add_argument("path", metavar="NAME", help="of the key, such as alice/app")
    return parser


def _target(parsed: argparse.Namespace, ending: str = "", **query: Any) -> str:
    return target("keys", parsed.path, ending, **query)


def _create(parser: Parser, parsed: argparse.Namespace, server: Server) -> int:
    return _show(server.ask("PUT", _target(parsed), {"type": parsed.type, "exportable": parsed.exportable}))


def _shows(method: str, ending: str) -> Work:
    return lambda parser, parsed, server: _show(server.ask(method, _target(parsed, ending)))


def _destroy(parser: Parser, parsed: argparse.Namespace, server: Server) -> int:
    return _show(server.ask("DELETE", _target(parsed, versions=parsed.versions)))


def _export(parser: Parser, parsed: argparse.Namespace, server: Server) -> int:
    found = server.ask("GET", _target(parsed, "/export", version=parsed.version))
    write_output(parsed.out, f"{found.text('key').rstrip()}\n".encode())
    return os.EX_OK


def _policy(parser: Parser, parsed: argparse.Namespace, server: Server) -> int:
    return policy(parsed, server, "keys")


def _wrap(parser: Parser, parsed: argparse.Namespace, server: Server) -> int:
    plaintext = _given(parsed)
    found = server.ask("POST", _target(parsed, "/wrap"), {"plaintext": plaintext, **_context(parsed)})
    write_output(parsed.out, f"{found.text('ciphertext')}\n".encode())
    return os.EX_OK


def _unwrap(parser: Parser, parsed: argparse.Namespace, server: Server) -> int:
    found = server.ask("POST", _target(parsed, "/unwrap"), {"ciphertext": _wrapped(parsed), **_context(parsed)})
    write_output(parsed.out, _plaintext(found))
    return os.EX_OK


def _rewrap(parser: Parser, parsed: argparse.Namespace, server: Server) -> int:
    found = server.ask("POST", _target(parsed, "/rewrap"), {"ciphertext": _wrapped(parsed), **_context(parsed)})
    write_output(parsed.out, f"{found.text('ciphertext')}\n".encode())
    return os.EX_OK


def _sign(parser: Parser, parsed: argparse.Namespace, server: Server) -> int:
    say(server.ask("POST", _target(parsed, "/sign"), _message(parser, parsed)).text("signature"))
    return os.EX_OK


def _verify(parser: Parser, parsed: argparse.Namespace, server: Server) -> int:
    document = _message(parser, parsed) | {"signature": _signature(parsed), "version": parsed.version}
    return _verdict(server.ask("POST", _target(parsed, "/verify"), document))


def _hmac(parser: Parser, parsed: argparse.Namespace, server: Server) -> int:
    say(server.ask("POST", _target(parsed, "/hmac"), {"message": _given(parsed)}).text("hmac"))
    return os.EX_OK


def _hmac_verify(parser: Parser, parsed: argparse.Namespace, server: Server) -> int:
    message = _given(parsed)
    document = {"message": message, "hmac": _signature(parsed), "version": parsed.version}
    return _verdict(server.ask("POST", _target(parsed, "/hmac-verify"), document))


def _list(parser: Parser, parsed: argparse.Namespace, server: Server) -> int:
    for one in listed(server, "keys", parsed.path):
        say(f"{one.text('name')}  {one.text('type')}, version {one.number('latest')}{_exportable(one)}")
    return os.EX_OK


def _show(found: Answer) -> int:
    say(f"{found.text('name')}  {found.text('type')}{_exportable(found)}")
    for one in found.inners("versions"):
        say(f"version {one.number('version')}  {one.text('state')}, by {one.text('created_by')}")
        if "public_key_pem" in one:
            say(*one.text("public_key_pem").splitlines())
    return os.EX_OK


def _exportable(found: Answer) -> str:
    return ", exportable" if found.flag("exportable") else ""


def _verdict(found: Answer) -> int:
    valid = found.flag("valid")
    say("valid" if valid else "NOT VALID")
    return os.EX_OK if valid else EX_INVALID


def _message(parser: Parser, parsed: argparse.Namespace) -> dict[str, Any]:
    if parsed.digest is None:
        return {"message": _given(parsed)}
    try:
        return {"digest": b64url(bytes.fromhex(parsed.digest))}
    except ValueError:
        parser.error(f"--digest {parsed.digest}: not hexadecimal")


def _given(parsed: argparse.Namespace) -> str:
    """The message or plaintext, as the routes take it."""
    return b64url(read_input(parsed, parsed.file, MESSAGE_SIZE_MAX))


def _context(parsed: argparse.Namespace) -> dict[str, str]:
    return {"context": b64url(parsed.context.encode())}


def _wrapped(parsed: argparse.Namespace) -> str:
    try:
        return read_input(parsed, parsed.file, CIPHERTEXT_SIZE_MAX).decode("ascii").strip()
    except UnicodeDecodeError:
        raise Refused("this is no ciphertext of enclave-os vault key wrap", os.EX_DATAERR) from None


def _signature(parsed: argparse.Namespace) -> str:
    with parsed.signature.open(encoding="ascii", errors="replace") as stream:
        return str(stream.read(1024)).strip()


def _plaintext(found: Answer) -> bytes:
    try:
        return read_b64url(found.text("plaintext"))
    except ValueError as error:
        raise found.lacks(f"a plaintext that can be read: it {error}") from error
