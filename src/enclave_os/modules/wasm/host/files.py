"""A file system in one sealed table: directories are rows of names, files are rows of bytes.

    row "d" + id    a directory: {"name": ["d" | "f", id]} as JSON; the root's id is zero
    row "f" + id    a file's bytes

Names lead to ids, so a rename moves no bytes. A table belongs to one app and is sealed with its key: no path, however
it is spelled, is a name in another's. What a call writes is kept in memory and stored on sync, and when the call has
returned; of a call that traps, only what it synced stays. A file that another call stored meanwhile is not overwritten:
the call fails, and may be made again.

Whatever belongs together is one batch of the store, and goes on when the call's deadline ends the call: so a rename, a
removal, and the files of a call (as far as they fit into a batch) are there whole or not at all.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final

from enclave_os.errors import SealBroken, VersionConflict
from enclave_os.modules.api import Table, Write
from enclave_os.wasm import GuestTrap

ID_SIZE: Final = 16
ROOT: Final = bytes(ID_SIZE)
NAME_SIZE_MAX: Final = 255
DEPTH_MAX: Final = 64
ENTRIES_MAX: Final = 10_000
HELD_BYTES_MAX: Final = 32 << 20
"""Bytes of files that one call holds in the enclave's memory; sync lets go of what was written."""

ATTEMPTS: Final = 16
"""How often a directory is read again because another call changed it first."""

TOGETHER_MAX: Final = 512
TOGETHER_BYTES_MAX: Final = 512 << 10
"""Files that are stored as one: with their names and the journal's, half of what a batch may have. More are several."""

Entry = tuple[str, bytes]


class FileError(Exception):
    """An error of the file system, by its WASI name (`no-entry`, `exist`, ...)."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class Node:
    """The bytes of one file in one call. Attributes: version: of the row they were read from, 0: there is none."""

    __slots__ = ("content", "dirty", "id", "version")

    def __init__(self, node_id: bytes, content: bytes, version: int) -> None:
        self.id = node_id
        self.content = bytearray(content)
        self.version = version
        self.dirty = False


@dataclass(slots=True)
class Folder:
    """A directory as it was read. Attributes: version: of its row, 0: there is none."""

    id: bytes
    entries: dict[str, Entry]
    version: int


class FileSystem:
    """One call's view of its app's files.

    Args:
        write: a batch of the table's storage.
        wait: does a coroutine elsewhere and waits for it here; with `whole`, it goes on when this call ends.
        random: that many random bytes.
        file_bytes: the most of a file.
    """

    def __init__(
        self,
        table: Table,
        write: Callable[[Sequence[Write]], Coroutine[Any, Any, int]],
        wait: Callable[..., Any],
        random: Callable[[int], bytes],
        file_bytes: int,
    ) -> None:
        self._table = table
        self._write = write
        self._wait = wait
        self._random = random
        self._file_bytes = file_bytes
        self._nodes: OrderedDict[bytes, Node] = OrderedDict()
        self._held = 0  # bytes of all of them: kept, since every read and write asks for it

    # -- paths --------------------------------------------------------------------------------------------------------

    def resolve(self, base: tuple[str, ...], path: str) -> tuple[str, ...]:
        """The parts of a path below the root, which it never leaves. Raises: FileError."""
        if "\0" in path:
            raise FileError("invalid")
        if path.startswith("/"):
            raise FileError("not-permitted")
        parts = list(base)
        for part in path.split("/"):
            if part in ("", "."):
                continue
            if part == "..":
                if len(parts) <= len(base):
                    raise FileError("not-permitted")  # above what the descriptor stands for
                parts.pop()
                continue
            if len(part.encode("utf-8", "surrogatepass")) > NAME_SIZE_MAX or len(parts) >= DEPTH_MAX:
                raise FileError("name-too-long")
            parts.append(part)
        return tuple(parts)

    def find(self, parts: tuple[str, ...]) -> Entry:
        """What stands at a path. Raises: FileError."""
        kind, node_id = "d", ROOT
        for part in parts:
            if kind != "d":
                raise FileError("not-directory")
            entry = self._directory(node_id).entries.get(part)
            if entry is None:
                raise FileError("no-entry")
            kind, node_id = entry
        return kind, node_id

    def names(self, node_id: bytes) -> list[tuple[str, str]]:
        """(name, kind) of a directory's entries, by name."""
        return sorted((name, kind) for name, (kind, _) in self._directory(node_id).entries.items())

    # -- directories --------------------------------------------------------------------------------------------------

    def make_directory(self, parts: tuple[str, ...]) -> None:
        """Raises: FileError."""
        made: Entry = ("d", self._random(ID_SIZE))

        def add() -> list[Write]:
            folder = self._open(parts[:-1])
            if parts[-1] in folder.entries:
                raise FileError("exist")
            folder.entries[parts[-1]] = made
            return [self._folder(folder)]

        self._need(parts)
        self._change(add)

    def make_file(self, parts: tuple[str, ...], *, exclusive: bool) -> Entry:
        """A file at a path: made, or the one that is there. Raises: FileError."""
        made: Entry = ("f", self._random(ID_SIZE))

        def add() -> list[Write]:
            folder = self._open(parts[:-1])
            if parts[-1] in folder.entries:
                if exclusive:
                    raise FileError("exist")
                return []
            folder.entries[parts[-1]] = made
            return [self._folder(folder)]

        self._need(parts)
        if self._change(add):
            self._nodes[made[1]] = Node(made[1], b"", 0)
            return made
        return self.find(parts)

    def remove(self, parts: tuple[str, ...], kind: str) -> None:
        """Unlink a file ("f") or remove an empty directory ("d"). Raises: FileError."""

        def drop() -> list[Write]:
            folder = self._open(parts[:-1])
            found = folder.entries.pop(parts[-1], None)
            if found is None:
                raise FileError("no-entry")
            if found[0] != kind:
                raise FileError("is-directory" if kind == "f" else "not-directory")
            return [self._folder(folder), self._gone(found)]

        self._need(parts)
        self._change(drop)

    def rename(self, old: tuple[str, ...], new: tuple[str, ...]) -> None:
        """Give an entry another name, replacing a file or an empty directory there. Raises: FileError."""

        def move() -> list[Write]:
            entry = self.find(old)
            if old == new:
                return []
            if entry[0] == "d" and new[: len(old)] == old:
                raise FileError("invalid")  # into itself
            source = self._open(old[:-1])
            target = source if old[:-1] == new[:-1] else self._open(new[:-1])
            if source.entries.pop(old[-1], None) != entry:
                raise FileError("no-entry")
            there = target.entries.get(new[-1])
            if there is not None and there[0] != entry[0]:
                raise FileError("is-directory" if there[0] == "d" else "not-directory")
            target.entries[new[-1]] = entry
            changed = [self._folder(folder) for folder in ([source] if target is source else [source, target])]
            return changed if there is None else [*changed, self._gone(there)]

        self._need(old)
        self._need(new)
        self._change(move)

    def _need(self, parts: tuple[str, ...]) -> None:
        if not parts:
            raise FileError("invalid")  # the root itself

    def _open(self, parts: tuple[str, ...]) -> Folder:
        """The directory at a path. Raises: FileError."""
        kind, node_id = self.find(parts)
        if kind != "d":
            raise FileError("not-directory")
        return self._directory(node_id)

    def _directory(self, node_id: bytes) -> Folder:
        item = self._wait(self._table.get(b"d" + node_id))
        return Folder(node_id, {}, 0) if item is None else Folder(node_id, _read(item.value), item.version)

    def _folder(self, folder: Folder) -> Write:
        """Its new entries. Raises: FileError."""
        if len(folder.entries) > ENTRIES_MAX:
            raise FileError("insufficient-space")
        return Write(self._table, b"d" + folder.id, _written(folder.entries), folder.version)

    def _gone(self, entry: Entry) -> Write:
        """The row of what no name leads to any more: a directory only if it is empty then. Raises: FileError."""
        kind, node_id = entry
        if kind == "f":
            return Write(self._table, b"f" + node_id, None)
        folder = self._directory(node_id)
        if folder.entries:
            raise FileError("not-empty")
        return Write(self._table, b"d" + node_id, None, folder.version)

    def _change(self, make: Callable[[], list[Write]]) -> bool:
        """Do all of it at once, whoever else changes these directories; returns whether there was anything to do."""
        for _ in range(ATTEMPTS):
            writes = make()
            try:
                if writes:
                    self._wait(self._write(writes), whole=True)
            except VersionConflict:
                continue
            for write in writes:
                if write.value is None:
                    self._forget(write.name[1:])
            return bool(writes)
        raise FileError("busy")

    # -- files --------------------------------------------------------------------------------------------------------

    def node(self, node_id: bytes) -> Node:
        """A file's bytes, read once a call as long as there is room. Good until the next call of any method here.

        Raises: FileError: the call has written more than may wait in memory.
        """
        node = self._nodes.get(node_id)
        if node is None:
            item = self._wait(self._table.get(b"f" + node_id))
            node = Node(node_id, b"", 0) if item is None else Node(node_id, item.value, item.version)
            self._nodes[node_id] = node
            self._held += len(node.content)
        self._nodes.move_to_end(node_id)
        self._make_room()
        return node

    def _make_room(self) -> None:
        """Forget what was only read, the longest unused first; what was written waits to be stored."""
        most = max(HELD_BYTES_MAX, 2 * self._file_bytes)
        if self._held <= most:
            return
        for node in list(self._nodes.values())[:-1]:
            if not node.dirty:
                self._forget(node.id)
                if self._held <= most:
                    return
        if len(self._nodes) > 1:
            raise FileError("insufficient-memory")

    def _forget(self, node_id: bytes) -> None:
        node = self._nodes.pop(node_id, None)
        if node is not None:
            self._held -= len(node.content)

    def write(self, node: Node, offset: int, data: bytes) -> None:
        """Put bytes into a file; a gap is zeros. Raises: FileError."""
        end = offset + len(data)
        if end > self._file_bytes:
            raise FileError("file-too-large")
        before = len(node.content)
        if offset > before:
            node.content += bytes(offset - before)
        node.content[offset:end] = data
        self._held += len(node.content) - before
        node.dirty = True

    def resize(self, node: Node, size: int) -> None:
        """Cut a file off, or make it longer with zeros. Raises: FileError."""
        if size > self._file_bytes:
            raise FileError("file-too-large")
        self._held += size - len(node.content)
        if size < len(node.content):
            del node.content[size:]
        else:
            node.content += bytes(size - len(node.content))
        node.dirty = True

    def sync(self, node: Node) -> None:
        """Store a file's bytes. Raises: GuestTrap: another call stored it meanwhile."""
        if node.dirty:
            self._store([node])

    def flush(self) -> None:
        """Store all that was written, together as far as it fits. Raises: GuestTrap: as `sync`."""
        together: list[Node] = []
        size = 0
        for node in self._nodes.values():
            if not node.dirty:
                continue
            size += len(node.content)
            if together and (len(together) == TOGETHER_MAX or size > TOGETHER_BYTES_MAX):
                self._store(together)
                together, size = [], len(node.content)
            together.append(node)
        if together:
            self._store(together)

    def _store(self, nodes: list[Node]) -> None:
        writes = [Write(self._table, b"f" + node.id, bytes(node.content), node.version) for node in nodes]
        try:
            version = self._wait(self._write(writes), whole=True)
        except VersionConflict:
            raise GuestTrap("another call changed a file that this one wrote", "conflict") from None
        for node in nodes:
            node.version, node.dirty = version, False


def _read(value: bytes) -> dict[str, Entry]:
    try:
        return {name: (kind, bytes.fromhex(node_id)) for name, (kind, node_id) in json.loads(value).items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise SealBroken("a directory of an app cannot be read") from error


def _written(entries: dict[str, Entry]) -> bytes:
    return json.dumps(
        {name: [kind, node_id.hex()] for name, (kind, node_id) in entries.items()}, separators=(",", ":")
    ).encode()
