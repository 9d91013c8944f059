"""Two rings, one each way, as the enclave holds them: private geometry, aligned stores."""

from __future__ import annotations

from dataclasses import dataclass

from enclave_os.border.region import Region
from enclave_os.wire import Consumer, Producer
from enclave_os.wire.layout import ChannelGeometry


@dataclass(frozen=True, slots=True)
class Channel:
    """The enclave's ends of one channel. A lie on either ring poisons it for good."""

    from_host: Consumer
    to_host: Producer


def attach_channel(region: Region, geometry: ChannelGeometry) -> Channel:
    """Take our ends of two rings whose geometry `check_channel` accepted.

    Raises: PeerProtocolError: a ring's cursors are not equal, or not multiples of 8, at attach.
    """
    inward, outward = geometry.to_enclave, geometry.to_host
    return Channel(
        Consumer(region.buffer, inward.header_offset, inward.data_offset, inward.capacity),
        Producer(region.buffer, outward.header_offset, outward.data_offset, outward.capacity, True),
    )
