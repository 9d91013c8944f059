"""What a configuration value can be: each kind reads, bounds, writes and describes its own values.

Shared by the operator's TOML, the environment, the flags and the enclave's JSON document, so that one check serves all
four. Pure: no files, no clock, no network. `wire/settings.py` has the table of keys.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Final, Literal, NamedTuple, TypeAlias, cast

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"

Side = Literal["host", "enclave", "both"]

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30
UNITS: Final = {"": 1, "B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB}

SIZE_TEXT: Final = re.compile(r"([0-9]{1,18})\s*([A-Za-z]*)", re.ASCII)
# RFC 1035 2.3.1 and RFC 1123 2.1; an internationalised name comes as its A-label (RFC 5890), so ASCII is enough.
DNS_LABEL: Final = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)", re.ASCII)
DNS_NAME_SIZE_MAX: Final = 253
SHOWN_VALUE_SIZE_MAX: Final = 80
NAMES_SHOWN_MAX: Final = 20  # of right names in an error; the sections are fewer, their keys together are not

# JSON numbers beyond 2**53 are not the same in every reader (RFC 8259 section 6).
JSON_INTEGER_MAX: Final = 1 << 53
JSON_DEPTH_MAX: Final = 8


class Endpoint(NamedTuple):
    """An IP address and a TCP port to listen on; port 0 lets the system choose one."""

    address: str
    port: int

    def __str__(self) -> str:
        return host_port(self.address, self.port)


def host_port(host: str, port: int) -> str:
    """`host:port`, an IPv6 address in brackets; the port always, so that two servers of one host are two."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_host_port(text: str) -> tuple[str, str]:
    """The parts of what looks like `host_port` made it, unchecked; without a colon the host is empty."""
    host, _, port = text.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), port


def shown(value: object) -> str:
    """A value as an error message shows it: quoted, without control characters, cut to a line."""
    text = repr(value)
    return text if len(text) <= SHOWN_VALUE_SIZE_MAX else f"{text[:SHOWN_VALUE_SIZE_MAX]}..."


def size_text(size: int) -> str:
    """A byte count as the documentation writes it: 2 MiB, 16 KiB, 100 bytes."""
    for unit, factor in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if size >= factor and size % factor == 0:
            return f"{size // factor} {unit}"
    return f"{size} bytes"


class Kind(ABC):
    """One kind of value. `read(dump(v)) == v` for every value v that `read` returns."""

    @abstractmethod
    def read(self, value: object) -> object:
        """Check and normalise one value. Raises: ValueError: its text says what is wrong and what would be right."""

    @abstractmethod
    def describe(self) -> str:
        """Type, bounds and unit in a few words, for the documentation."""

    def from_text(self, text: str) -> object:
        """What an environment variable or a flag means, before `read`."""
        return text

    def dump(self, value: object) -> Json:
        """The one JSON form of a value that `read` returned."""
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TypeError(f"{type(self).__name__} has no JSON form for {shown(value)}")


@dataclass(frozen=True, slots=True)
class Integer(Kind):
    """A whole number, `least` to `most`, both inclusive."""

    least: int
    most: int
    unit: str = ""

    def read(self, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{shown(value)} is not a whole number; give one from {self.least} to {self.most}")
        if not self.least <= value <= self.most:
            side = "small" if value < self.least else "big"
            raise ValueError(f"{shown(value)} is too {side}; give a number from {self.least} to {self.most}")
        return value

    def from_text(self, text: str) -> object:
        return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text, re.ASCII) else text

    def describe(self) -> str:
        return f"integer, {self.least} to {self.most}{' ' if self.unit else ''}{self.unit}"


@dataclass(frozen=True, slots=True)
class OptionalInteger(Kind):
    """A whole number, or nothing at all (the key left out)."""

    kind: Integer

    def read(self, value: object) -> int | None:
        return None if value is None else self.kind.read(value)

    def from_text(self, text: str) -> object:
        return self.kind.from_text(text)

    def describe(self) -> str:
        return self.kind.describe()


@dataclass(frozen=True, slots=True)
class Size(Kind):
    """A byte count: an integer, or text such as "2MiB"; inside always an integer of bytes."""

    least: int
    most: int
    power_of_two: bool = False

    def read(self, value: object) -> int:
        size = self._bytes(value)
        if not self.least <= size <= self.most:
            side = "small" if size < self.least else "big"
            raise ValueError(f"{shown(value)} is too {side}; give {size_text(self.least)} to {size_text(self.most)}")
        if self.power_of_two and size & (size - 1):
            below = 1 << (size.bit_length() - 1)
            near = f"{size_text(below)} or {size_text(below * 2)}" if below < self.most else size_text(below)
            raise ValueError(f"{shown(value)} is not a power of two; the nearest are {near}")
        return size

    @staticmethod
    def _bytes(value: object) -> int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        match = SIZE_TEXT.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise ValueError(f'{shown(value)} is not a size; give bytes, or text such as "2MiB"')
        if match[2] not in UNITS:
            raise ValueError(f"{shown(value)} has the unknown unit {match[2]}; the units are B, KiB, MiB and GiB")
        return int(match[1]) * UNITS[match[2]]

    def describe(self) -> str:
        power = ", a power of two" if self.power_of_two else ""
        return f"size, {size_text(self.least)} to {size_text(self.most)}{power}"


@dataclass(frozen=True, slots=True)
class Seconds(Kind):
    """A span of time in seconds, whole or with a fraction."""

    least: float
    most: float

    def read(self, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{shown(value)} is not a number of seconds; give {self.least:g} to {self.most:g}")
        if not self.least <= value <= self.most:  # false for NaN too
            raise ValueError(f"{shown(value)} is out of range; give {self.least:g} to {self.most:g} seconds")
        return float(value)

    def from_text(self, text: str) -> object:
        return float(text) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text, re.ASCII) else text

    def describe(self) -> str:
        return f"seconds, {self.least:g} to {self.most:g}"


class Flag(Kind):
    """True or false."""

    def read(self, value: object) -> bool:
        if not isinstance(value, bool):
            raise ValueError(f"{shown(value)} is neither true nor false")
        return value

    def from_text(self, text: str) -> object:
        return {"true": True, "false": False}.get(text, text)

    def describe(self) -> str:
        return "true or false"


@dataclass(frozen=True, slots=True)
class Choice(Kind):
    """One of a few words."""

    words: tuple[str, ...]

    def read(self, value: object) -> str:
        if not isinstance(value, str) or value not in self.words:
            raise ValueError(f"{shown(value)} is not one of {', '.join(self.words)}")
        return value

    def describe(self) -> str:
        return " | ".join(f'"{word}"' for word in self.words)


@dataclass(frozen=True, slots=True)
class Text(Kind):
    """Text without control characters other than line ends where `lines` allows them."""

    what: str
    size_max: int
    empty: bool = False
    lines: bool = False

    def read(self, value: object) -> str:
        if not isinstance(value, str):
            raise ValueError(f"{shown(value)} is not text; give {self.what}")
        if not value and not self.empty:
            raise ValueError(f"is empty; give {self.what}")
        if len(value) > self.size_max:
            raise ValueError(f"has {len(value)} characters; at most {self.size_max} are allowed")
        allowed = "\r\n" if self.lines else ""
        if not all(character.isprintable() or character in allowed for character in value):
            raise ValueError(f"{shown(value)} has a control character; give {self.what}")
        return value

    def describe(self) -> str:
        return f"text: {self.what}"


@dataclass(frozen=True, slots=True)
class Hex(Kind):
    """So many bytes as hexadecimal digits; inside always in lower case."""

    what: str
    size: int
    empty: bool = False

    def read(self, value: object) -> str:
        if self.empty and value == "":
            return ""
        if not isinstance(value, str) or not re.fullmatch(rf"[0-9a-fA-F]{{{2 * self.size}}}", value, re.ASCII):
            raise ValueError(f"{shown(value)} is not {self.what}: {2 * self.size} hexadecimal digits")
        return value.lower()

    def describe(self) -> str:
        return f"{2 * self.size} hexadecimal digits: {self.what}"


class ServerName(Kind):
    """A DNS name or IP address for a certificate, in the one form that comparisons use."""

    def read(self, value: object) -> str:
        if not isinstance(value, str):
            raise ValueError(f"{shown(value)} is not text; give a DNS name or an IP address")
        address = _ip_address(value)
        if address is not None:
            return address
        name = value.lower().removesuffix(".")
        labels = name.split(".")
        if len(name) > DNS_NAME_SIZE_MAX or not all(DNS_LABEL.fullmatch(label) for label in labels):
            raise ValueError(f"{shown(value)} is neither a DNS name (ASCII, no wildcard) nor an IP address")
        if labels[-1].isdecimal():
            raise ValueError(f"{shown(value)} looks like an IP address and is none")
        return name

    def describe(self) -> str:
        return "DNS name or IP address"


class Network(Kind):
    """An IP address, or a network in CIDR notation."""

    def read(self, value: object) -> str:
        try:
            return str(ipaddress.ip_network(value if isinstance(value, str) else ""))
        except ValueError:
            raise ValueError(f"{shown(value)} is no IP address and no network; example: 10.0.0.0/24") from None

    def describe(self) -> str:
        return "IP address or network"


class ListenEndpoint(Kind):
    """`address:port`, IPv6 in brackets."""

    def read(self, value: object) -> Endpoint:
        if isinstance(value, Endpoint):
            return value
        address, colon, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
        inner = address[1:-1] if address.startswith("[") and address.endswith("]") else address
        checked = _ip_address(inner)
        bracketed = inner != address
        if not colon or checked is None or bracketed != (":" in inner):
            raise ValueError(f'{shown(value)} is not address:port; examples: "0.0.0.0:443", "[::1]:8443"')
        if not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) or int(port) > 65535:
            raise ValueError(f"{shown(value)} has no port from 0 to 65535")
        return Endpoint(checked, int(port))

    def dump(self, value: object) -> Json:
        return str(value)

    def describe(self) -> str:
        return "address:port"


@dataclass(frozen=True, slots=True)
class ListOf(Kind):
    """Several values of one kind, each once; inside a tuple."""

    item: Kind
    least: int
    most: int

    def read(self, value: object) -> tuple[object, ...]:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ValueError(f"{shown(value)} is not a list")
        if not self.least <= len(value) <= self.most:
            raise ValueError(f"has {len(value)} entries; give {self.least} to {self.most}")
        items: list[object] = []
        for entry in value:
            item = self.item.read(entry)
            if item in items:
                raise ValueError(f"names {shown(entry)} twice")
            items.append(item)
        return tuple(items)

    def from_text(self, text: str) -> object:
        return [self.item.from_text(part.strip()) for part in text.split(",")] if text.strip() else []

    def dump(self, value: object) -> Json:
        return [self.item.dump(item) for item in cast(tuple[object, ...], value)]

    def describe(self) -> str:
        return f"list of {self.least} to {self.most}: {self.item.describe()}"


@dataclass(frozen=True, slots=True)
class Tables(Kind):
    """An array of tables (`[[section.key]]`), each checked against the keys of the dataclass `row`."""

    what: str
    most: int
    row: type

    def read(self, value: object) -> tuple[object, ...]:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ValueError(f"{shown(value)} is not an array of tables")
        if len(value) > self.most:
            raise ValueError(f"has {len(value)} entries; at most {self.most} are allowed")
        items: list[object] = []
        for number, entry in enumerate(value, 1):
            if isinstance(entry, self.row):
                items.append(entry)
                continue
            if not isinstance(entry, Mapping):
                raise ValueError(f"entry {number} is not a table")
            item, problems = read_table(self.row, entry, "")
            if problems:
                raise ValueError("; ".join(f"entry {number}: {name}: {text}" for name, text in problems.items()))
            items.append(item)
        return tuple(items)

    def dump(self, value: object) -> Json:
        return [dump_table(self.row, item) for item in cast(tuple[object, ...], value)]

    def describe(self) -> str:
        return f"at most {self.most} tables: {self.what}"


@dataclass(frozen=True, slots=True)
class Key:
    """One row of the table of keys."""

    kind: Kind
    side: Side
    doc: str
    required: bool


def key(kind: Kind, default: object, side: Side, doc: str) -> Any:
    """Declare a dataclass field as a configuration key; `default` in the operator's form, `...` for a required key."""
    row = Key(kind, side, doc, required=default is ...)
    return field(default=dataclasses.MISSING if row.required else kind.read(default), metadata={"key": row})


def keys_of(table: type) -> dict[str, Key]:
    """The keys that a section declares, by name, in the order of declaration."""
    return {part.name: part.metadata["key"] for part in dataclasses.fields(table)}


def default_of(table: type, name: str) -> object:
    """The default of one key, as `read` returns it; None for a required one."""
    part = next(part for part in dataclasses.fields(table) if part.name == name)
    return None if part.default is dataclasses.MISSING else part.default


def read_table(
    table: type, document: Mapping[str, object], path: str, *, complete: bool = False
) -> tuple[object | None, dict[str, str]]:
    """Check one section against its keys.

    Args:
        path: what stands before a key's name in problems: "" or "timeouts.".
        complete: every key must be there (the enclave's document); else the defaults fill the gaps.
    Returns: the section, with defaults where a key had a problem, or None where that cannot be; the problems by key.
    """
    keys = keys_of(table)
    problems: dict[str, str] = {}
    values: dict[str, object] = {}
    for name, value in document.items():
        if name not in keys:
            problems[f"{path}{name}"] = f"is not a key here{nearest(name, keys)}"
            continue
        try:
            values[name] = keys[name].kind.read(value)
        except ValueError as error:
            problems[f"{path}{name}"] = str(error)
    for name, row in keys.items():
        if name not in document and (row.required or complete):
            problems[f"{path}{name}"] = f"is missing; give {row.kind.describe()}"
    if any(row.required and name not in values for name, row in keys.items()):
        return None, problems
    return table(**values), problems


def dump_table(table: type, section: object) -> dict[str, Json]:
    """The JSON form of what a section tells the enclave; `read_table` reads it back."""
    return {name: row.kind.dump(getattr(section, name)) for name, row in keys_of(table).items() if row.side != "host"}


def nearest(name: object, names: Iterable[str]) -> str:
    """The end of an error message: the nearest right name, or all of them where they are few."""
    known = list(names)
    near = get_close_matches(str(name)[:SHOWN_VALUE_SIZE_MAX], known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]}?"
    few = ", ".join(known[:NAMES_SHOWN_MAX])
    more = "" if len(known) <= NAMES_SHOWN_MAX else f" and {len(known) - NAMES_SHOWN_MAX} more"
    return f"; known here: {few}{more}" if known else ""


def check_json(value: object, depth: int = JSON_DEPTH_MAX) -> Json:
    """Copy a value that must survive JSON unchanged (a module's own section). Raises: ValueError."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError("has half a surrogate pair, which UTF-8 cannot carry")
        return value
    if isinstance(value, int):
        if abs(value) > JSON_INTEGER_MAX:
            raise ValueError(f"{shown(value)} is beyond 2**53, where JSON readers differ; write it as text")
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{shown(value)} has no JSON form")
        return value
    if depth == 0:
        raise ValueError(f"is nested more than {JSON_DEPTH_MAX} deep")
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise ValueError(f"the name {shown(name)} is not text")
        return {name: check_json(inner, depth - 1) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [check_json(inner, depth - 1) for inner in value]
    raise ValueError(f"{shown(value)} has no JSON form (a date or time? write it as text)")


def _ip_address(text: str) -> str | None:
    """The normal form of an IP address without a zone, or None."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None  # the caller has the words for it
    return None if "%" in text else str(address)
