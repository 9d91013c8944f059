"""The file system of an app against a model of one: directories are dicts, files are bytes."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from enclave_os.errors import SealBroken, VersionConflict
from enclave_os.modules.api import Write
from enclave_os.modules.wasm.host import files as files_module
from enclave_os.modules.wasm.host.files import ATTEMPTS, TOGETHER_MAX, FileError, FileSystem
from enclave_os.wasm import GuestTrap

Parts = tuple[str, ...]
NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(tuple)


@dataclass(frozen=True)
class Entry:
    name: bytes
    value: bytes
    version: int


class MemoryTable:
    """A table whose calls never wait."""

    def __init__(self) -> None:
        self.rows: dict[bytes, Entry] = {}
        self.version = 0
        self.conflicts = 0
        """Writes that will lose against another's."""
        self.batches: list[list[bytes]] = []

    async def get(self, name: bytes) -> Entry | None:
        return self.rows.get(name)

    async def multi_get(self, names: Sequence[bytes]) -> list[Entry | None]:
        return [self.rows.get(name) for name in names]

    async def write(self, writes: Sequence[Write]) -> int:
        assert len({write.name for write in writes}) == len(writes) <= 1024
        assert sum(400 + len(write.name) + len(write.value or b"") for write in writes) <= 1 << 20 or len(writes) == 1
        self.batches.append([write.name for write in writes])
        if self.conflicts:
            self.conflicts -= 1
            raise VersionConflict(7)
        for write in writes:
            there = self.rows.get(write.name)
            if write.expected is not None and (0 if there is None else there.version) != write.expected:
                raise VersionConflict(there.version if there else 0)
        self.version += 1
        for write in writes:
            if write.value is None:
                self.rows.pop(write.name, None)
            else:
                self.rows[write.name] = Entry(write.name, write.value, self.version)
        return self.version

    async def scan(self, start: bytes = b"", end: bytes = b"", limit: int = 256) -> list[Entry]:
        return [self.rows[name] for name in sorted(self.rows)][:limit]

    def iterate(self) -> AsyncIterator[Entry]:
        raise NotImplementedError


def at_once(work: Coroutine[Any, Any, Any], *, whole: bool = False) -> Any:
    """What a coroutine returns that never waits."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits")


def file_system(table: MemoryTable) -> FileSystem:
    counter = itertools.count(table.version * 1000 + len(table.rows) + 1)

    def random(size: int) -> bytes:
        return next(counter).to_bytes(size, "big")

    return FileSystem(table, table.write, at_once, random, 1 << 20)  # type: ignore[arg-type]


class Files(RuleBasedStateMachine):
    """Every operation has the same outcome as on the model, and what is stored is what the model holds."""

    @initialize()
    def begin(self) -> None:
        self.table = MemoryTable()
        self.files = file_system(self.table)
        self.model: dict[str, Any] = {}

    def there(self, path: Parts) -> Any:
        found: Any = self.model
        for part in path:
            if not isinstance(found, dict):
                return None
            found = found.get(part)
        return found

    def folder(self, path: Parts) -> dict[str, Any] | None:
        found = self.there(path[:-1])
        return found if isinstance(found, dict) else None

    def tried(self, possible: bool, work: Any) -> None:
        if possible:
            work()
        else:
            with pytest.raises(FileError):
                work()

    @rule(path=PATHS)
    def make_directory(self, path: Parts) -> None:
        folder = self.folder(path)
        possible = folder is not None and path[-1] not in folder
        self.tried(possible, lambda: self.files.make_directory(path))
        if possible and folder is not None:
            folder[path[-1]] = {}

    @rule(path=PATHS, data=st.binary(max_size=5), offset=st.integers(0, 8), exclusive=st.booleans())
    def write(self, path: Parts, data: bytes, offset: int, exclusive: bool) -> None:
        folder = self.folder(path)
        there = self.there(path)
        if folder is None or (exclusive and there is not None):
            self.tried(False, lambda: self.files.make_file(path, exclusive=exclusive))
            return
        kind, node_id = self.files.make_file(path, exclusive=exclusive)
        assert kind == ("d" if isinstance(there, dict) else "f")
        if kind == "f":
            self.files.write(self.files.node(node_id), offset, data)
            before: bytes = there or b""
            before = before.ljust(offset, b"\0")
            folder[path[-1]] = before[:offset] + data + before[offset + len(data) :]

    @rule(path=PATHS, size=st.integers(0, 9))
    def resize(self, path: Parts, size: int) -> None:
        there = self.there(path)
        folder = self.folder(path)
        if isinstance(there, bytes) and folder is not None:
            self.files.resize(self.files.node(self.files.find(path)[1]), size)
            folder[path[-1]] = there[:size].ljust(size, b"\0")

    @rule(path=PATHS, kind=st.sampled_from(["f", "d"]))
    def remove(self, path: Parts, kind: str) -> None:
        there = self.there(path)
        possible = isinstance(there, bytes) if kind == "f" else there == {} and isinstance(there, dict)
        self.tried(possible, lambda: self.files.remove(path, kind))
        folder = self.folder(path)
        if possible and folder is not None:
            del folder[path[-1]]

    @rule(old=PATHS, new=PATHS)
    def rename(self, old: Parts, new: Parts) -> None:
        moved, replaced, target, source = self.there(old), self.there(new), self.folder(new), self.folder(old)
        into_itself = isinstance(moved, dict) and new[: len(old)] == old
        fits = True
        if isinstance(replaced, dict):
            fits = isinstance(moved, dict) and not replaced
        elif replaced is not None:
            fits = isinstance(moved, bytes)
        possible = moved is not None and (old == new or (target is not None and not into_itself and fits))
        self.tried(possible, lambda: self.files.rename(old, new))
        if possible and old != new and target is not None and source is not None:
            del source[old[-1]]
            target[new[-1]] = moved

    @rule()
    def another_call(self) -> None:
        self.files.flush()
        self.files = file_system(self.table)

    @invariant()
    def it_is_as_the_model(self) -> None:
        self.compare((), self.model)

    @invariant()
    def no_row_is_left_that_no_name_leads_to(self) -> None:
        led_to = {b"d" + bytes(16)}
        waiting = [bytes(16)]
        while waiting:
            for kind, node_id in self.files._directory(waiting.pop()).entries.values():
                assert kind.encode() + node_id not in led_to, "one name each"
                led_to.add(kind.encode() + node_id)
                if kind == "d":
                    waiting.append(node_id)
        assert self.table.rows.keys() <= led_to

    @invariant()
    def what_is_held_is_counted(self) -> None:
        assert self.files._held == sum(len(node.content) for node in self.files._nodes.values())

    def compare(self, path: Parts, model: dict[str, Any]) -> None:
        kind, node_id = self.files.find(path)
        assert kind == "d"
        listed = self.files.names(node_id)
        assert listed == sorted((name, "d" if isinstance(inner, dict) else "f") for name, inner in model.items())
        for name, inner in model.items():
            below = (*path, name)
            if isinstance(inner, dict):
                self.compare(below, inner)
            else:
                assert bytes(self.files.node(self.files.find(below)[1]).content) == inner


TestFiles = Files.TestCase
TestFiles.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_a_directory_that_others_change_is_read_again() -> None:
    table = MemoryTable()
    files = file_system(table)
    table.conflicts = ATTEMPTS - 1
    files.make_directory(("a",))
    assert files.names(bytes(16)) == [("a", "d")]
    table.conflicts = ATTEMPTS
    with pytest.raises(FileError, match="busy"):
        files.make_directory(("b",))


def test_a_file_that_others_stored_is_not_overwritten() -> None:
    table = MemoryTable()
    one, two = file_system(table), file_system(table)
    _, node_id = one.make_file(("a",), exclusive=True)
    one.flush()
    for files in (one, two):
        files.write(files.node(node_id), 0, b"x")
    one.flush()
    with pytest.raises(GuestTrap) as caught:
        two.flush()
    assert caught.value.reason == "conflict"


def test_what_belongs_together_is_one_batch() -> None:
    table = MemoryTable()
    files = file_system(table)
    for name in "ab":
        files.make_directory((name,))
        files.write(files.node(files.make_file((name, "f"), exclusive=True)[1]), 0, name.encode())
    table.batches.clear()
    files.flush()
    assert [len(batch) for batch in table.batches] == [2], "both files"
    files.rename(("a", "f"), ("b", "f"))
    assert [len(batch) for batch in table.batches] == [2, 3], "both directories, and the file that was replaced"
    files.remove(("b", "f"), "f")
    files.remove(("b",), "d")
    assert [len(batch) for batch in table.batches] == [2, 3, 2, 2]
    assert files.names(bytes(16)) == [("a", "d")]


def test_of_files_that_another_call_changed_none_is_stored() -> None:
    table = MemoryTable()
    one, two = file_system(table), file_system(table)
    ids = [one.make_file((name,), exclusive=True)[1] for name in "abc"]
    for node_id in ids:
        two.write(two.node(node_id), 0, b"two")
    one.write(one.node(ids[1]), 0, b"one")
    one.flush()
    with pytest.raises(GuestTrap):
        two.flush()
    assert [bytes(file_system(table).node(node_id).content) for node_id in ids] == [b"", b"one", b""]


def test_more_than_a_batch_takes_is_stored_in_several() -> None:
    table = MemoryTable()
    files = file_system(table)
    ids = [files.make_file((f"f{number}",), exclusive=True)[1] for number in range(TOGETHER_MAX + 1)]
    for node_id in ids:
        files.write(files.node(node_id), 0, b"x")
    table.batches.clear()
    files.flush()
    files.flush()
    assert [len(batch) for batch in table.batches] == [TOGETHER_MAX, 1]
    table.batches.clear()
    for node_id, size in zip(ids, (files_module.TOGETHER_BYTES_MAX - 1, 1, 1, 1 << 20, 1), strict=False):
        files.write(files.node(node_id), 0, bytes(size))
    files.flush()
    assert [len(batch) for batch in table.batches] == [2, 1, 1, 1]


def test_a_directory_that_another_call_puts_something_into_is_not_removed() -> None:
    table = MemoryTable()
    one, two = file_system(table), file_system(table)
    one.make_directory(("d",))
    removed = one._gone

    def late(entry: tuple[str, bytes]) -> Write:
        write = removed(entry)
        one._gone = removed  # type: ignore[method-assign]
        two.make_file(("d", "f"), exclusive=True)
        return write

    one._gone = late  # type: ignore[method-assign]
    with pytest.raises(FileError, match="not-empty"):
        one.remove(("d",), "d")
    assert two.names(two.find(("d",))[1]) == [("f", "f")]


def test_a_directory_that_is_none_of_ours_is_tampering() -> None:
    table = MemoryTable()
    table.rows[b"d" + bytes(16)] = Entry(b"d" + bytes(16), b"[1]", 1)
    with pytest.raises(SealBroken):
        file_system(table).find(("a",))


@pytest.mark.parametrize("path", ["/a", "..", "a/../..", "a\0b", "../a"])
def test_paths_end_at_the_root(path: str) -> None:
    with pytest.raises(FileError):
        file_system(MemoryTable()).resolve((), path)


@pytest.mark.parametrize(
    ("base", "path", "parts"),
    [((), "a/./b//c/", ("a", "b", "c")), (("x",), "a/../b", ("x", "b")), ((), ".", ()), (("x",), "", ("x",))],
)
def test_paths_are_made_short(base: Parts, path: str, parts: Parts) -> None:
    assert file_system(MemoryTable()).resolve(base, path) == parts
