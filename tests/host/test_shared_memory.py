"""Regions: their form, their names, and that the living keep theirs."""

from __future__ import annotations

import os
import stat
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from enclave_os.wire.errors import UsageError
from enclave_os.wire.layout import (
    CONFIG_OFFSET,
    DESCRIPTOR_SIZE,
    LAYOUT_VERSION,
    MAGIC,
    REGION_NAME,
    EntryResult,
    Slot,
    SlotState,
    check_channel,
    descriptor_offset,
    plan_region,
    slot_offset,
)
from enclave_os_host.shared_memory import Region, region_folder, region_label, remove_leftovers
from enclave_os_host.state import StateError

LAYOUT = plan_region(data_to_enclave=1 << 16, data_to_host=1 << 17, rpc_to_host=1 << 16, rpc_to_enclave=1 << 16)


def words(region: Region, offset: int, count: int) -> tuple[int, ...]:
    return struct.unpack_from(f"<{count}Q", region.buffer, offset)


def test_a_region_is_private_and_says_what_it_is(tmp_path: Path) -> None:
    folder = region_folder(tmp_path / "regions")
    region = Region(folder, region_label(tmp_path, 3), LAYOUT)
    path = folder / region.name
    assert REGION_NAME.fullmatch(region.name)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_size == LAYOUT.size
    magic, version, low, high, size = words(region, 0, 5)
    assert (magic, version, size) == (MAGIC, LAYOUT_VERSION, LAYOUT.size)
    other = Region(folder, region_label(tmp_path, 3), LAYOUT)
    assert words(other, 16, 2) != (low, high)
    region.unlink()
    region.unlink()
    assert not path.exists()
    other.unlink()


def test_entries_are_filled_for_the_enclave(tmp_path: Path) -> None:
    region = Region(region_folder(tmp_path / "regions"), "test", LAYOUT)
    assert [region.state(slot) for slot in Slot] == [SlotState.FREE] * 4
    region.call_channels()
    region.call_run(b'{"format":1}')
    region.call_shutdown()
    assert [region.state(slot) for slot in Slot] == [SlotState.FILLED] * 4
    for slot, channel in ((Slot.INIT_CHANNEL, LAYOUT.rpc), (Slot.INIT_DATA_CHANNEL, LAYOUT.data)):
        assert words(region, slot_offset(slot) + 8, 2) == (descriptor_offset(slot), DESCRIPTOR_SIZE)
        assert check_channel(words(region, descriptor_offset(slot), 6), LAYOUT.size) == channel
    assert words(region, slot_offset(Slot.RUN) + 8, 2) == (CONFIG_OFFSET, 12)
    assert region.buffer[CONFIG_OFFSET : CONFIG_OFFSET + 12] == b'{"format":1}'
    region.forget_document()
    assert region.buffer[CONFIG_OFFSET : CONFIG_OFFSET + 12] == bytes(12)
    with pytest.raises(UsageError):
        region.call_run(bytes((1 << 20) + 1))
    region.unlink()


def test_results_are_read_only_when_the_slot_is_taken(tmp_path: Path) -> None:
    region = Region(region_folder(tmp_path / "regions"), "test", LAYOUT)
    region.call_run(b"{}")
    assert region.result(Slot.RUN) is None
    struct.pack_into("<Q", region.buffer, slot_offset(Slot.RUN) + 24, EntryResult.BAD_CONFIGURATION)
    assert region.result(Slot.RUN) is None
    struct.pack_into("<Q", region.buffer, slot_offset(Slot.RUN), SlotState.TAKEN)
    assert region.result(Slot.RUN) == EntryResult.BAD_CONFIGURATION
    struct.pack_into("<Q", region.buffer, slot_offset(Slot.RUN) + 24, 99)
    with pytest.raises(ValueError, match="99"):
        region.result(Slot.RUN)
    region.unlink()


def test_a_label_cannot_leave_the_folder(tmp_path: Path) -> None:
    for label in ("../x", "a/b", "A", "x" * 60, ""):
        with pytest.raises(UsageError):
            Region(region_folder(tmp_path / "regions"), f"{label}" or "/", LAYOUT)


def test_only_the_regions_of_the_dead_are_removed(tmp_path: Path) -> None:
    folder = region_folder(tmp_path / "regions")
    living = Region(folder, "living", LAYOUT)
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from enclave_os.wire.layout import plan_region\n"
        "from enclave_os_host.shared_memory import Region\n"
        "rings = ('data_to_enclave', 'data_to_host', 'rpc_to_host', 'rpc_to_enclave')\n"
        "layout = plan_region(**dict.fromkeys(rings, 1 << 16))\n"
        "print(Region(Path(sys.argv[1]), 'dead', layout).name, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    dead = subprocess.run(
        [sys.executable, "-c", script, str(folder)], check=False, capture_output=True, text=True, timeout=60
    ).stdout.strip()
    assert (folder / dead).exists()
    (folder / "Not a region").touch()
    (folder / "a-link").symlink_to(tmp_path)
    assert remove_leftovers(folder) == [dead]
    assert sorted(path.name for path in folder.iterdir()) == ["Not a region", "a-link", living.name]
    living.unlink()


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("file", "link"):
        with pytest.raises(StateError, match="is not a folder"):
            region_folder(tmp_path / name)
    (tmp_path / "open").mkdir(0o755)
    assert stat.S_IMODE(region_folder(tmp_path / "open").stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder of another user")
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", 12345, 12345)
    with pytest.raises(StateError, match="belongs to user 12345"):
        region_folder(tmp_path / "theirs")
