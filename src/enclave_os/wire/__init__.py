"""The wire: rings, frames and RPC headers, shared by host and enclave. The one Python door to `_ring` and `_codec`.

No I/O, no clock, no crypto, no logging; standard library only.
"""

from enclave_os._codec import (
    FrameReader,
    FrameWriter,
    decode_frame,
    decode_rpc_reply,
    decode_rpc_reply_head,
    decode_rpc_request,
    encode_frame,
    encode_rpc_reply,
    encode_rpc_request,
    is_frame_allowed,
)
from enclave_os._ring import EMPTY, FULL, READY, Consumer, Producer, create_ring
from enclave_os._rows import (
    Wanted,
    WantedValue,
    decode_keys,
    decode_operations,
    decode_values,
    encode_keys,
    encode_operations,
    encode_values,
    split_operations,
    take_value,
    take_values,
)

__all__ = [
    "EMPTY",
    "FULL",
    "READY",
    "Consumer",
    "FrameReader",
    "FrameWriter",
    "Producer",
    "Wanted",
    "WantedValue",
    "create_ring",
    "decode_frame",
    "decode_keys",
    "decode_operations",
    "decode_rpc_reply",
    "decode_rpc_reply_head",
    "decode_rpc_request",
    "decode_values",
    "encode_frame",
    "encode_keys",
    "encode_operations",
    "encode_rpc_reply",
    "encode_rpc_request",
    "encode_values",
    "is_frame_allowed",
    "split_operations",
    "take_value",
    "take_values",
]
