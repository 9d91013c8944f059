"""The configuration for people: where each value came from, the reference page, and the example file.

docs/configuration.md and enclave-os.example.toml are what `enclave-os config reference` and `config example` print;
tests/host/test_config.py holds them equal to the table of keys.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from enclave_os.wire.egress_settings import EgressAllowance
from enclave_os.wire.setting_issuers import Issuer
from enclave_os.wire.setting_kinds import (
    Endpoint,
    Key,
    Seconds,
    Size,
    Tables,
    default_of,
    keys_of,
    size_text,
)
from enclave_os.wire.setting_table import SECTIONS

from .config import DEFAULT, ENVIRONMENT_PREFIX, Loaded, all_keys

REFERENCE_HEAD: Final = """\
# Configuration

This page is printed by `enclave-os config reference` from the table that checks every configuration
(`src/enclave_os/wire/setting_table.py`); a test holds the two equal.

The host reads, each over the one before it:

1. `enclave-os.toml`: the file that `--config` or `$ENCLAVE_OS_CONFIG` names, else the first that exists of
   `./enclave-os.toml`, `$XDG_CONFIG_HOME/enclave-os/enclave-os.toml` and `/etc/enclave-os/enclave-os.toml`
2. the environment: `ENCLAVE_OS_SECTION__KEY`, for example `ENCLAVE_OS_SERVER__WORKERS=2`; lists are separated by commas
3. flags: `enclave-os serve --help` lists those with a name of their own; `--set section.key=value` sets any key

An unknown key is an error that names the nearest right one, and all problems are reported at once.
`enclave-os config check` looks without serving; `enclave-os config show` prints every value and where it came from.

**Who reads it**: the host's keys are the host's business. The enclave's keys travel to it in one document, which it
checks again against the same table, since the host may have written anything there. So a key of the enclave
protects the enclave from its clients; none of them protects it from the host that chose the value.

Sizes are bytes, or text with B, KiB, MiB or GiB. Times are seconds, with a fraction where wanted.
"""

RELATIONS_TEXT: Final = """\
## Relations

`config check` also holds these, and says which of the keys to change:

- `limits.target_bytes` < `limits.head_bytes`; `limits.body_bytes` <= `limits.body_memory_bytes`
- `timeouts.rpc` < `timeouts.request`
- `timeouts.host_idle` > `handshake`, `head`, `body`, `idle` and `request`
- `egress.connect`, `handshake`, `head` and `idle` <= `egress.total`; `head`, `idle` and `keep` < `timeouts.host_idle`
- each `[[egress.allow]]` names a module of `modules.enabled`, once
- `server.connections_max` <= `limits.connections` x `server.workers`
- `kv.restore` only with `server.workers` = 1
- each `[module.<name>]` is named by `modules.enabled`
"""

EXAMPLE_HEAD: Final = """\
# Enclave OS: every key with its default. Copy to enclave-os.toml and keep what you change.
# What each key may be: docs/configuration.md. Check with: enclave-os config check
"""

EXAMPLE_TAIL: Final = """
# Whose bearer tokens are accepted; `enclave-os token keygen` makes a development key and prints such a table.
# [[auth.issuers]]
# issuer = "https://issuer.example"
# audience = "enclave-os"
# public_key_file = "issuer.pub.pem"
# roles_claim = "roles"

# Whom a module may call; without a table it calls nobody.
# [[egress.allow]]
# module = "vault"
# hosts = ["issuer.example", "*.api.example:8443", "tcp://db.example:5432"]

# A module's own keys, passed to the module as they are.
# [module.helloworld]
"""


def show_text(loaded: Loaded) -> str:
    """A table of key, value and origin."""
    rows = [("key", "value", "from")]
    rows += [(path, _short(value), origin) for path, value, origin in _values(loaded)]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    lines = [f"{path:<{widths[0]}}  {value:<{widths[1]}}  {origin}" for path, value, origin in rows]
    return "\n".join(lines) + "\n"


def show_json(loaded: Loaded) -> str:
    """The same for machines: `{"section.key": {"value": ..., "from": ...}}`."""
    document = {path: {"value": _plain(value), "from": origin} for path, value, origin in _values(loaded)}
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def reference() -> str:
    """docs/configuration.md."""
    parts = [REFERENCE_HEAD]
    for section, table in SECTIONS.items():
        parts.append(f"## [{section}]\n\n{table.__doc__}\n\n{_reference_rows(table, section)}")
        if section == "auth":
            parts.append(f"### [[auth.issuers]]\n\n{Issuer.__doc__}\n\n{_reference_rows(Issuer, '')}")
        if section == "egress":
            parts.append(f"### [[egress.allow]]\n\n{EgressAllowance.__doc__}\n\n{_reference_rows(EgressAllowance, '')}")
    parts.append(
        "## [module.<name>]\n\nA module's own keys. They are passed as they are to the module of that name, which "
        "checks them; it must be enabled.\n"
    )
    parts.append(RELATIONS_TEXT)
    return "\n".join(parts)


def example() -> str:
    """enclave-os.example.toml: every key, commented out, with its default."""
    lines = [EXAMPLE_HEAD]
    for section, table in SECTIONS.items():
        lines.append(f"[{section}]")
        for name, row in keys_of(table).items():
            if isinstance(row.kind, Tables):
                continue
            lines.append(f"# {row.doc}")
            default = default_of(table, name)
            lines.append(f"# {name} =" if default is None else f"# {name} = {_toml(default, row)}")
        lines.append("")
    return "\n".join(lines).rstrip("\n") + "\n" + EXAMPLE_TAIL


def _values(loaded: Loaded) -> list[tuple[str, object, str]]:
    values: list[tuple[str, object, str]] = []
    for section, name, _ in all_keys():
        path = f"{section}.{name}"
        value = getattr(getattr(loaded.settings, section), name)
        values.append((path, value, loaded.origins.get(path, DEFAULT)))
    for module, table in loaded.settings.module.items():
        path = f"module.{module}"
        values.append((path, table, loaded.origins.get(path, DEFAULT)))
    return values


def _reference_rows(table: type, section: str) -> str:
    lines = ["| key | value | default | read by | what |", "|---|---|---|---|---|"]
    for name, row in keys_of(table).items():
        default = "required" if row.required else _default_text(table, name, row)
        kind = row.kind.describe().replace("|", "\\|")
        lines.append(f"| `{name}` | {kind} | {default} | {row.side} | {row.doc} |")
    first, row = next(iter(keys_of(table).items()))
    if section and not isinstance(row.kind, Tables):
        lines += ["", f"In the environment: `{ENVIRONMENT_PREFIX}{section.upper()}__{first.upper()}` and so on."]
    return "\n".join(lines) + "\n"


def _default_text(table: type, name: str, row: Key) -> str:
    default = default_of(table, name)
    if default is None or default in ("", ()):
        return ""
    if isinstance(row.kind, Size) and isinstance(default, int):
        return size_text(default)
    return f"`{_toml(default, row)}`"


def _toml(value: object, row: Key) -> str:
    """A default as TOML writes it."""
    if isinstance(row.kind, Size) and isinstance(value, int):
        return f'"{size_text(value).replace(" ", "")}"' if value >= 1024 else str(value)
    if isinstance(row.kind, Seconds) and isinstance(value, float):
        return f"{value:g}"
    return json.dumps(_plain(value))


def _plain(value: object) -> object:
    if isinstance(value, Endpoint):
        return str(value)
    if isinstance(value, Issuer):
        return {name: getattr(value, name) for name in keys_of(Issuer) if getattr(value, name)}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return value


def _short(value: object) -> str:
    """A value on one line of the table; a PEM says only that it is there."""
    if value is None:
        return "-"
    if isinstance(value, tuple) and value and isinstance(value[0], Issuer):
        return f"{len(value)}: {', '.join(issuer.issuer for issuer in value)}"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) and value else json.dumps(_plain(value), ensure_ascii=False)
