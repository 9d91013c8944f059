"""The enclave's edge: what the host wrote about region, geometry, entries and doorbell is checked before it is used."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_os.border.channel import attach_channel
from enclave_os.border.control import ControlBlock
from enclave_os.border.doorbell import EventfdDoorbell
from enclave_os.border.region import REGION_SIZE_MIN, Region
from enclave_os.wire.errors import HostProtocolError, PeerProtocolError, UsageError
from enclave_os.wire.layout import (
    DESCRIPTOR_SIZE,
    LAYOUT_VERSION,
    MAGIC_OFFSET,
    REGION_SIZE_OFFSET,
    RING_HEADERS_OFFSET,
    VERSION_OFFSET,
    EntryResult,
    RingGeometry,
    Slot,
    SlotState,
    check_channel,
    check_region_name,
    descriptor_offset,
    plan_region,
    slot_offset,
)
from enclave_os.wire.limits import RING_HEADER_SIZE

from .fake_host import CAPACITY, FakeHost


@pytest.fixture
def host(tmp_path: Path) -> Iterator[FakeHost]:
    host = FakeHost(tmp_path)
    yield host
    host.close()


def attach(host: FakeHost) -> Region:
    return Region(host.name, str(host.folder))


class TestRegion:
    def test_an_honest_region_is_mapped_whole(self, host: FakeHost) -> None:
        region = attach(host)
        assert region.size == host.layout.size
        assert region.epoch == host.epoch

    @pytest.mark.parametrize("name", ["", "a" * 65, "../etc", "a/b", "A", "a.b", "a\0", "a\n", "ä"])
    def test_a_name_outside_the_alphabet_never_reaches_a_path(self, name: str) -> None:
        with pytest.raises(PeerProtocolError, match="name"):
            check_region_name(name)
        with pytest.raises(PeerProtocolError, match="name"):
            Region(name, "/nonexistent")

    @given(st.text(max_size=80))
    def test_names_are_accepted_exactly_by_the_published_alphabet(self, name: str) -> None:
        if re.fullmatch(r"[a-z0-9-]{1,64}", name) and "\n" not in name:
            assert check_region_name(name) == name
        else:
            with pytest.raises(PeerProtocolError):
                check_region_name(name)

    def test_a_missing_region_is_the_hosts_fault(self, tmp_path: Path) -> None:
        with pytest.raises(HostProtocolError, match="cannot be opened"):
            Region("absent", str(tmp_path))

    def test_a_link_is_not_followed(self, host: FakeHost) -> None:
        os.symlink(host.path, host.folder / "link")
        with pytest.raises(HostProtocolError, match="cannot be opened"):
            Region("link", str(host.folder))

    def test_a_folder_is_not_a_region(self, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        with pytest.raises(HostProtocolError):
            Region("folder", str(tmp_path))

    @pytest.mark.parametrize("size", [0, 8, 4096, REGION_SIZE_MIN - 1])
    def test_a_short_file_is_refused_before_it_is_mapped(self, tmp_path: Path, size: int) -> None:
        (tmp_path / "short").write_bytes(b"\0" * size)
        with pytest.raises(HostProtocolError, match="bytes"):
            Region("short", str(tmp_path))

    @pytest.mark.parametrize(
        ("offset", "value"),
        [
            (MAGIC_OFFSET, 0),
            (VERSION_OFFSET, LAYOUT_VERSION + 1),
            (REGION_SIZE_OFFSET, 4096),
            (REGION_SIZE_OFFSET, 2**64 - 1),
        ],
    )
    def test_a_header_that_says_something_else_is_refused(self, host: FakeHost, offset: int, value: int) -> None:
        host.words[offset // 8] = value
        with pytest.raises(HostProtocolError):
            attach(host)

    @given(offset=st.integers(-(2**64), 2**64), size=st.integers(-(2**64), 2**64))
    def test_no_copy_leaves_the_mapping(self, offset: int, size: int) -> None:
        region = Region.__new__(Region)
        region.size = 4096
        region.buffer = bytearray(4096)  # type: ignore[assignment]
        if 0 <= offset <= 4096 and 0 <= size <= 4096 - offset:
            assert len(region.copy(offset, size)) == size
        else:
            with pytest.raises(HostProtocolError):
                region.copy(offset, size)

    @pytest.mark.parametrize("offset", [-8, 1, 4, 7])
    def test_words_are_read_at_multiples_of_eight_inside(self, host: FakeHost, offset: int) -> None:
        region = attach(host)
        with pytest.raises(HostProtocolError):
            region.read_word(offset)
        with pytest.raises(HostProtocolError):
            region.write_word(region.size, 1)


class TestGeometry:
    def words(self) -> list[int]:
        layout = plan_region(
            data_to_enclave=CAPACITY, data_to_host=CAPACITY, rpc_to_host=CAPACITY, rpc_to_enclave=CAPACITY
        )
        a, b = layout.data.to_enclave, layout.data.to_host
        return [a.header_offset, a.data_offset, a.capacity, b.header_offset, b.data_offset, b.capacity]

    def test_what_the_host_plans_the_enclave_accepts(self) -> None:
        layout = plan_region(
            data_to_enclave=2 * CAPACITY, data_to_host=CAPACITY, rpc_to_host=4 * CAPACITY, rpc_to_enclave=CAPACITY
        )
        a, b = layout.rpc.to_enclave, layout.rpc.to_host
        rpc = check_channel([*_words(a), *_words(b)], layout.size)
        assert rpc == layout.rpc
        c, d = layout.data.to_enclave, layout.data.to_host
        assert check_channel([*_words(c), *_words(d)], layout.size, (a, b)) == layout.data

    @pytest.mark.parametrize("index", range(6))
    @pytest.mark.parametrize(
        "value",
        [
            0,
            1,
            7,
            8,
            RING_HEADERS_OFFSET - 128,
            2**31,
            2**32 - 1,
            2**63,
            2**64 - 1,
            2**64 - CAPACITY,
            3 * CAPACITY // 2 + 1,
        ],
    )
    def test_each_word_replaced_by_a_lie_is_refused(self, index: int, value: int) -> None:
        words = self.words()
        layout_size = words[4] + CAPACITY
        assert check_channel(words, layout_size)
        words[index] = value
        with pytest.raises(PeerProtocolError):
            check_channel(words, layout_size)

    def test_rings_may_not_overlap_each_other_or_their_headers(self) -> None:
        words = self.words()
        size = words[4] + CAPACITY
        same_data = [*words[:4], words[1], CAPACITY]
        same_header = [*words[:3], words[0], *words[4:]]
        header_in_data = [words[1] + 1024, *words[1:]]
        for lie in (same_data, same_header, header_in_data):
            with pytest.raises(PeerProtocolError, match=r"overlaps|header"):
                check_channel(lie, size)

    @given(st.lists(st.integers(0, 2**64 - 1), min_size=6, max_size=6), st.integers(0, 2**34))
    def test_whatever_is_accepted_lies_inside(self, words: list[int], size: int) -> None:
        try:
            channel = check_channel(words, size)
        except PeerProtocolError:
            return
        for ring in (channel.to_enclave, channel.to_host):
            assert ring.header_offset + RING_HEADER_SIZE <= size
            assert ring.data_offset + ring.capacity <= size


class TestControl:
    def test_an_entry_is_taken_once(self, host: FakeHost) -> None:
        host.fill_channels()
        control = ControlBlock(attach(host))
        entry = control.take(Slot.INIT_CHANNEL)
        assert (entry.offset, entry.size) == (descriptor_offset(Slot.INIT_CHANNEL), DESCRIPTOR_SIZE)
        with pytest.raises(UsageError):
            control.take(Slot.INIT_CHANNEL)
        control.answer(Slot.INIT_CHANNEL, EntryResult.OK)
        assert host.slot(Slot.INIT_CHANNEL) == (SlotState.TAKEN, EntryResult.OK)

    def test_a_slot_that_the_host_fills_again_is_not_taken_again(self, host: FakeHost) -> None:
        host.fill_channels()
        control = ControlBlock(attach(host))
        control.take(Slot.INIT_CHANNEL)
        control.answer(Slot.INIT_CHANNEL, EntryResult.OK)
        host.words[slot_offset(Slot.INIT_CHANNEL) // 8] = SlotState.FILLED
        assert not control.is_filled(Slot.INIT_CHANNEL)

    @pytest.mark.parametrize("state", [0, 2, 3, 2**64 - 1])
    def test_only_state_one_is_a_call(self, host: FakeHost, state: int) -> None:
        host.words[slot_offset(Slot.RUN) // 8] = state
        assert not ControlBlock(attach(host)).is_filled(Slot.RUN)

    def test_a_host_that_never_calls_is_given_up(self, host: FakeHost) -> None:
        control = ControlBlock(attach(host))
        with pytest.raises(HostProtocolError, match="did not call run"):
            control.wait(Slot.RUN, EventfdDoorbell(host.doorbell), seconds=0.01)

    @pytest.mark.parametrize(
        ("offset", "size"),
        [(0x400, 0), (0x400, 47), (0x400, 49), (0x401, 48), (2**63, 48), (2**64 - 8, 48), (0x400, 2**64 - 1)],
    )
    def test_a_descriptor_that_is_not_there_is_refused(self, host: FakeHost, offset: int, size: int) -> None:
        host.fill(Slot.INIT_CHANNEL, offset, size)
        control = ControlBlock(attach(host))
        with pytest.raises(HostProtocolError):
            control.channel(control.take(Slot.INIT_CHANNEL))

    def test_the_descriptor_is_copied_before_it_is_checked(self, host: FakeHost) -> None:
        host.fill_channels()
        region = attach(host)
        control = ControlBlock(region)
        geometry = control.channel(control.take(Slot.INIT_CHANNEL))
        host.words[descriptor_offset(Slot.INIT_CHANNEL) // 8] = 2**63
        assert attach_channel(region, geometry).from_host.capacity == CAPACITY


class TestDoorbell:
    def test_three_descriptors(self, host: FakeHost) -> None:
        doorbell = EventfdDoorbell(host.doorbell)
        doorbell.ring_dispatcher()
        assert os.eventfd_read(host.rpc_bell) == 1
        host.ring_enclave()
        doorbell.silence()
        doorbell.silence()
        with pytest.raises(BlockingIOError):
            os.eventfd_read(host.to_enclave_bell)

    @pytest.mark.parametrize(
        "spec",
        [
            "",
            "eventfd:",
            "eventfd:3,4",
            "eventfd:0,4,5",
            "eventfd:4,4,5",
            "eventfd:-1,4,5",
            "eventfd:3,4,5 ",
            "pipe:3,4,5",
            "eventfd:3,4,99999",
            "eventfd:٣,4,5",
        ],
    )
    def test_a_word_that_is_not_the_doorbell_is_refused(self, spec: str) -> None:
        with pytest.raises(HostProtocolError):
            EventfdDoorbell(spec)

    def test_closed_descriptors_are_refused(self, host: FakeHost) -> None:
        closed = os.dup(host.rpc_bell)
        os.close(closed)
        with pytest.raises(HostProtocolError, match="not open"):
            EventfdDoorbell(f"eventfd:{host.to_enclave_bell},{host.data_bell},{closed}")


def _words(ring: RingGeometry) -> list[int]:
    return [ring.header_offset, ring.data_offset, ring.capacity]
