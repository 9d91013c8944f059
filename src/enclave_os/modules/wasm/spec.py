"""What an app's developer says of it: the document of `PUT /wasm/apps/<name>`, checked once, and how it is kept.

Everything but the secret key is public: it is a config leaf of the enclave, so whoever calls the app can know it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from enclave_os.evidence.config_leaf import canonical_json
from enclave_os.http import HTTPError
from enclave_os.modules.wasm.permissions import Permissions
from enclave_os.modules.wasm.settings import WasmSettings

APP_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,62}", re.ASCII)
_LABEL: Final = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
HOST_NAME: Final = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})+")
ENVIRONMENT_MAX: Final = 64
TEXT_SIZE_MAX: Final = 4096
DOCS_MAX: Final = 2000
KEY_SIZE: Final = 32

MEMBERS: Final = frozenset(
    [
        *("name", "hostname", "max_fuel", "memory", "timeout", "env", "args", "permissions"),
        *("encryption_key", "docs", "mcp_enabled", "keep_data"),
    ]
)


@dataclass(frozen=True, slots=True)
class AppSpec:
    """One app as its developer described it.

    Attributes:
        hostname: "" for none of its own.
        seconds: of a call.
        env, args: what `wasi:cli/environment` says.
        docs: texts for functions (`name`) and parameters (`name.param`), for the app's descriptions.
        brought_key: the developer's key for the app's data; None: one is made inside.
        keep_data: a changed component may go on with the data of the one before it.
    """

    name: str
    hostname: str = ""
    fuel: int = 0
    memory: int = 0
    seconds: float = 0.0
    env: tuple[tuple[str, str], ...] = ()
    args: tuple[str, ...] = ()
    permissions: Permissions = field(default_factory=Permissions)
    docs: tuple[tuple[str, str], ...] = ()
    mcp: bool = True
    keep_data: bool = field(default=False, compare=False)
    brought_key: bytes | None = field(default=None, repr=False, compare=False)

    @classmethod
    def read(cls, name: str, document: Mapping[str, Any], settings: WasmSettings) -> AppSpec:
        """From the developer's document. Raises: HTTPError: 400, and what of it is wrong."""
        for member in document:
            if member not in MEMBERS:
                raise HTTPError(400, f"{member!r} is not known; an app has {', '.join(sorted(MEMBERS))}")
        if not APP_NAME.fullmatch(name) or document.get("name", name) != name:
            raise HTTPError(400, "an app's name has lower-case letters, digits and -, at most 63, and is the path's")
        hostname = _text(document, "hostname", "")
        if hostname and not HOST_NAME.fullmatch(hostname):
            raise HTTPError(400, "hostname is a DNS name in lower case with at least one dot")
        env = {} if document.get("env") is None else document["env"]
        if not isinstance(env, dict) or len(env) > ENVIRONMENT_MAX or not all(map(_is_env, env.items())):
            raise HTTPError(400, f"env is an object of at most {ENVIRONMENT_MAX} texts")
        args = [] if document.get("args") is None else document["args"]
        if not isinstance(args, list) or len(args) > ENVIRONMENT_MAX or not all(map(_is_text, args)):
            raise HTTPError(400, f"args is an array of at most {ENVIRONMENT_MAX} texts")
        docs = {} if document.get("docs") is None else document["docs"]
        if not isinstance(docs, dict) or len(docs) > DOCS_MAX or not all(map(_is_text, [*docs, *docs.values()])):
            raise HTTPError(400, f"docs is an object of at most {DOCS_MAX} texts")
        return cls(
            name=name,
            hostname=hostname,
            fuel=_number(document, "max_fuel", settings.fuel, settings.fuel_max),
            memory=_number(document, "memory", settings.memory, settings.memory_max),
            seconds=float(_number(document, "timeout", settings.seconds, settings.seconds)),
            env=tuple(sorted(env.items())),
            args=tuple(args),
            permissions=Permissions.read(document.get("permissions")),
            docs=tuple(sorted(docs.items())),
            mcp=_flag(document, "mcp_enabled", True),
            keep_data=_flag(document, "keep_data", False),
            brought_key=_key(document),
        )

    def public(self) -> dict[str, Any]:
        """What anybody may know, and what is attested: everything but the key."""
        return {
            "name": self.name,
            "hostname": self.hostname,
            "max_fuel": self.fuel,
            "memory": self.memory,
            "timeout": self.seconds,
            "env": dict(self.env),
            "args": list(self.args),
            "permissions": self.permissions.document(),
            "docs": dict(self.docs),
            "mcp_enabled": self.mcp,
        }

    def configuration_hash(self) -> bytes:
        """SHA-256 of `public()` as RFC 8785 JSON: P.3.5."""
        return hashlib.sha256(canonical_json(self.public())).digest()


def read_key(value: object) -> bytes:
    """A developer's key as it is sent. Raises: ValueError: not so many hexadecimal digits."""
    key = bytes.fromhex(value) if isinstance(value, str) else b""
    if len(key) != KEY_SIZE:
        raise ValueError("another number of digits")
    return key


def key_source(brought_key: bytes | None) -> str:
    """How the app's data key came about: P.3.4."""
    return "generated" if brought_key is None else f"byok:{hashlib.sha256(brought_key).hexdigest()}"


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= TEXT_SIZE_MAX and "\0" not in value


def _is_env(pair: tuple[str, object]) -> bool:
    return _is_text(pair[1]) and pair[0] != "" and "=" not in pair[0] and _is_text(pair[0])


def _text(document: Mapping[str, Any], name: str, default: str) -> str:
    value = document.get(name)
    if value is None:
        return default
    if not isinstance(value, str):
        raise HTTPError(400, f"{name} is a text")
    return value


def _flag(document: Mapping[str, Any], name: str, default: bool) -> bool:
    value = document.get(name)
    if value is None:
        return default
    if type(value) is not bool:
        raise HTTPError(400, f"{name} is true or false")
    return value


def _number(document: Mapping[str, Any], name: str, default: int, most: int) -> int:
    value = document.get(name)
    if value is None:
        return default
    if type(value) is not int or not 1 <= value <= most:
        raise HTTPError(400, f"{name} is a whole number from 1 to {most}, the most that this server lets an app have")
    return value


def _key(document: Mapping[str, Any]) -> bytes | None:
    value = document.get("encryption_key")
    if value is None:
        return None
    try:
        return read_key(value)
    except ValueError as error:
        raise HTTPError(400, f"encryption_key is {2 * KEY_SIZE} hexadecimal digits") from error
