"""`wasi:filesystem` over the app's sealed table: one preopened directory, `/`. There are no links and no times."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, Final

from enclave_os.modules.wasm.host.context import CallContext, answering, err
from enclave_os.modules.wasm.host.files import ROOT, FileError, Node
from enclave_os.modules.wasm.host.streams import (
    CHUNK_MAX,
    ERROR,
    INPUT,
    OUTPUT,
    InputStream,
    IOError_,
    OutputStream,
)
from enclave_os.wasm import Interface

DESCRIPTOR: Final = 7
ENTRIES: Final = 8
OFFSET_MAX: Final = 2**63 - 1


class Descriptor:
    """An open directory or file.

    Attributes:
        parts: the path; what `..` cannot leave.
        node_id: what it leads to, wherever that is moved.
        flags: read, write and mutate-directory, as they were given.
    """

    RESOURCE = DESCRIPTOR

    def __init__(self, parts: tuple[str, ...], kind: str, node_id: bytes, flags: frozenset[str]) -> None:
        self.parts = parts
        self.kind = kind
        self.node_id = node_id
        self.flags = flags

    def close(self) -> None:
        """Nothing to let go of: what was written is stored at the end of the call."""

    def node(self, context: CallContext, *, writing: bool = False) -> Node:
        """The file's bytes. Raises: FileError: a directory, or not opened for that."""
        if self.kind != "f":
            raise FileError("is-directory")
        if ("write" if writing else "read") not in self.flags:
            raise FileError("bad-descriptor")
        return context.files.node(self.node_id)

    def below(self, context: CallContext, path: str, *, changing: bool = False) -> tuple[str, ...]:
        """The whole path of one below this directory. Raises: FileError."""
        if self.kind != "d":
            raise FileError("not-directory")
        if changing and "mutate-directory" not in self.flags:
            raise FileError("read-only")
        return context.files.resolve(self.parts, path)


class Entries:
    """A directory's entries, one at a time."""

    RESOURCE = ENTRIES

    def __init__(self, found: list[tuple[str, str]]) -> None:
        self.rest: Iterator[tuple[str, str]] = iter(found)

    def close(self) -> None:
        """Nothing to let go of."""


_answers: Final = answering(FileError)


def _open_at(
    context: CallContext,
    at: Descriptor,
    path_flags: frozenset[str],
    path: str,
    how: frozenset[str],
    flags: frozenset[str],
) -> Descriptor:
    writing = bool({"create", "truncate"} & how) or "write" in flags
    parts = at.below(context, path, changing="create" in how)
    if writing and "mutate-directory" not in at.flags:
        raise FileError("read-only")
    if "create" in how and parts:
        if "directory" in how:
            raise FileError("invalid")
        kind, node_id = context.files.make_file(parts, exclusive="exclusive" in how)
    else:
        kind, node_id = context.files.find(parts)
    if "directory" in how and kind != "d":
        raise FileError("not-directory")
    if kind == "d" and "truncate" in how:
        raise FileError("is-directory")
    if kind == "d" and "write" in flags:
        raise FileError("is-directory")
    made = Descriptor(parts, kind, node_id, flags)
    if "truncate" in how:
        context.files.resize(context.files.node(node_id), 0)
    return made


def _read(context: CallContext, file: Descriptor, length: int, offset: int) -> tuple[bytes, bool]:
    content = file.node(context).content
    data = bytes(content[offset : offset + min(length, CHUNK_MAX)]) if offset <= len(content) else b""
    return data, offset + len(data) >= len(content)


def _write(context: CallContext, file: Descriptor, data: bytes, offset: int) -> int:
    context.files.write(file.node(context, writing=True), offset, data)
    return len(data)


def _read_via_stream(context: CallContext, file: Descriptor, offset: int) -> InputStream:
    file.node(context)  # may it be read at all
    at = offset

    def read(size: int) -> bytes:
        nonlocal at
        data = bytes(file.node(context).content[at : at + size])
        at += len(data)
        return data

    return InputStream(read)


def _write_via_stream(context: CallContext, file: Descriptor, offset: int) -> OutputStream:
    file.node(context, writing=True)
    at = offset

    def write(data: bytes) -> None:
        nonlocal at
        context.files.write(file.node(context, writing=True), at, data)
        at += len(data)

    return OutputStream(write)


def _append_via_stream(context: CallContext, file: Descriptor) -> OutputStream:
    file.node(context, writing=True)

    def write(data: bytes) -> None:
        node = file.node(context, writing=True)
        context.files.write(node, len(node.content), data)

    return OutputStream(write)


def _set_size(context: CallContext, file: Descriptor, size: int) -> None:
    context.files.resize(file.node(context, writing=True), size)


def _sync(context: CallContext, file: Descriptor) -> None:
    if file.kind == "f":
        context.files.sync(context.files.node(file.node_id))


def _stat_of(context: CallContext, kind: str, node_id: bytes) -> dict[str, Any]:
    size = len(context.files.node(node_id).content) if kind == "f" else 0
    return {
        "type": _type(kind),
        "link-count": 1,
        "size": size,
        "data-access-timestamp": None,
        "data-modification-timestamp": None,
        "status-change-timestamp": None,
    }


def _stat(context: CallContext, file: Descriptor) -> dict[str, Any]:
    return _stat_of(context, file.kind, file.node_id)


def _stat_at(context: CallContext, at: Descriptor, path_flags: frozenset[str], path: str) -> dict[str, Any]:
    return _stat_of(context, *context.files.find(at.below(context, path)))


def _read_directory(context: CallContext, at: Descriptor) -> Entries:
    if at.kind != "d":
        raise FileError("not-directory")
    return Entries(context.files.names(at.node_id))


def _next_entry(context: CallContext, entries: Entries) -> dict[str, str] | None:
    found = next(entries.rest, None)
    return None if found is None else {"type": _type(found[1]), "name": found[0]}


def _make_directory(context: CallContext, at: Descriptor, path: str) -> None:
    context.files.make_directory(at.below(context, path, changing=True))


def _unlink(context: CallContext, at: Descriptor, path: str) -> None:
    context.files.remove(at.below(context, path, changing=True), "f")


def _remove_directory(context: CallContext, at: Descriptor, path: str) -> None:
    context.files.remove(at.below(context, path, changing=True), "d")


def _rename(context: CallContext, at: Descriptor, old: str, to: Descriptor, new: str) -> None:
    context.files.rename(at.below(context, old, changing=True), to.below(context, new, changing=True))


def _hash_of(node_id: bytes) -> dict[str, int]:
    digest = hashlib.sha256(node_id).digest()
    return {"lower": int.from_bytes(digest[:8], "little"), "upper": int.from_bytes(digest[8:16], "little")}


def _hash_at(context: CallContext, at: Descriptor, path_flags: frozenset[str], path: str) -> dict[str, int]:
    return _hash_of(context.files.find(at.below(context, path))[1])


def _refuse(code: str) -> Callable[..., tuple[str, Any]]:
    return lambda context, *values: err(code)


def _type(kind: str) -> str:
    return "directory" if kind == "d" else "regular-file"


def _directories(context: CallContext) -> list[tuple[Descriptor, str]]:
    return [(Descriptor((), "d", ROOT, frozenset({"read", "mutate-directory"})), "/")]


def _error_code(context: CallContext, error: IOError_) -> str | None:
    return None if error.network else error.code


RESOURCES: Final = {
    "descriptor": DESCRIPTOR,
    "directory-entry-stream": ENTRIES,
    "input-stream": INPUT,
    "output-stream": OUTPUT,
    "error": ERROR,
}

INTERFACES: Final = (
    Interface("wasi:filesystem/preopens", ("0.2.",), {"get-directories": _directories}, RESOURCES),
    Interface(
        "wasi:filesystem/types",
        ("0.2.",),
        {
            "[method]descriptor.read-via-stream": _answers(_read_via_stream),
            "[method]descriptor.write-via-stream": _answers(_write_via_stream),
            "[method]descriptor.append-via-stream": _answers(_append_via_stream),
            "[method]descriptor.advise": _answers(lambda context, file, offset, length, advice: None),
            "[method]descriptor.sync-data": _answers(_sync),
            "[method]descriptor.sync": _answers(_sync),
            "[method]descriptor.get-flags": _answers(lambda context, file: file.flags),
            "[method]descriptor.get-type": _answers(lambda context, file: _type(file.kind)),
            "[method]descriptor.set-size": _answers(_set_size),
            "[method]descriptor.set-times": _refuse("unsupported"),
            "[method]descriptor.set-times-at": _refuse("unsupported"),
            "[method]descriptor.read": _answers(_read),
            "[method]descriptor.write": _answers(_write),
            "[method]descriptor.read-directory": _answers(_read_directory),
            "[method]descriptor.create-directory-at": _answers(_make_directory),
            "[method]descriptor.stat": _answers(_stat),
            "[method]descriptor.stat-at": _answers(_stat_at),
            "[method]descriptor.link-at": _refuse("unsupported"),
            "[method]descriptor.symlink-at": _refuse("unsupported"),
            "[method]descriptor.readlink-at": _refuse("invalid"),
            "[method]descriptor.open-at": _answers(_open_at),
            "[method]descriptor.remove-directory-at": _answers(_remove_directory),
            "[method]descriptor.unlink-file-at": _answers(_unlink),
            "[method]descriptor.rename-at": _answers(_rename),
            "[method]descriptor.is-same-object": lambda context, one, other: one.node_id == other.node_id,
            "[method]descriptor.metadata-hash": _answers(lambda context, file: _hash_of(file.node_id)),
            "[method]descriptor.metadata-hash-at": _answers(_hash_at),
            "[method]directory-entry-stream.read-directory-entry": _answers(_next_entry),
            "filesystem-error-code": _error_code,
        },
        RESOURCES,
    ),
)
