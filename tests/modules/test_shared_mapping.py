"""What Gramine asks of the mapping that both sides share: opened for both, mapped whole and shared, never protected.

Under SGX an `untrusted_shm` mapping lies outside the enclave: mprotect of it ends the process, a length of 0 is refused
(it is no regular file there), and O_WRONLY cannot be mapped (gramine 1.9, libos/src/fs/shm).
"""

from __future__ import annotations

import mmap
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import enclave_os
from enclave_os.border.region import Region
from tests.enclave.fake_host import FakeHost

NATIVES = sorted(Path(enclave_os.__file__).parent.rglob("*.so"))
# Calls that would change, move or share a mapping, or bring the enclave a socket or a process of its own.
FORBIDDEN = {
    "mprotect", "pkey_mprotect", "mremap", "mmap", "mmap64", "madvise", "shm_open", "memfd_create", "socket", "connect",
    "bind", "listen", "accept4", "fork", "vfork", "execve", "posix_spawn", "system", "popen", "dlopen",
}  # fmt: skip


def test_it_is_opened_and_mapped_as_gramine_wants_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = FakeHost(tmp_path)
    opened: list[int] = []
    mapped: list[tuple[Any, ...]] = []
    real_open: Callable[..., int] = os.open

    class Recorded(mmap.mmap):
        def __new__(cls, *arguments: Any) -> Recorded:
            mapped.append(arguments[1:])
            return super().__new__(cls, *arguments)

    def open_and_note(path: str, flags: int) -> int:
        opened.append(flags)
        return real_open(path, flags)

    monkeypatch.setattr(os, "open", open_and_note)
    monkeypatch.setattr(mmap, "mmap", Recorded)
    region = Region(host.name, str(tmp_path))
    assert [flags & os.O_ACCMODE for flags in opened] == [os.O_RDWR]
    assert mapped == [(region.size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)]
    assert region.size == host.layout.size > 0
    host.close()


def test_a_cursor_is_written_in_one_word(tmp_path: Path) -> None:
    """Not byte by byte, as struct.pack_into would: the other side never sees half of one."""
    host = FakeHost(tmp_path)
    region = Region(host.name, str(tmp_path))
    words = region._words
    assert (words.format, words.itemsize) == ("Q", 8)
    region.write_word(0x100, 0x0102030405060708)
    assert region.read_word(0x100) == 0x0102030405060708
    host.close()


@pytest.mark.parametrize("native", NATIVES, ids=[path.name.partition(".")[0] for path in NATIVES])
def test_no_native_of_the_enclave_asks_for_more(native: Path) -> None:
    listed = subprocess.run(["objdump", "-T", native], capture_output=True, text=True, check=True).stdout
    wanted = {line.split()[-1].partition("@")[0] for line in listed.splitlines() if "*UND*" in line}
    assert wanted, "the table of symbols was not read"
    assert not wanted & FORBIDDEN
