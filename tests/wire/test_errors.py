"""Errors name the guilty party, and the lies of the C code have their words."""

import re
from pathlib import Path

from enclave_os.wire.errors import LIE_TEXTS, HostProtocolError, Lie, PeerProtocolError, UsageError, WireError

PXD = Path(__file__).parents[2] / "src/enclave_os/_ring.pxd"


def test_lies_are_those_of_the_c_code() -> None:
    numbers = {
        name: int(value) for name, value in re.findall(r"^    LIE_([A-Z_]+) = (\d+)", PXD.read_text(), re.MULTILINE)
    }
    assert numbers.pop("LAST") == max(Lie)
    assert {lie.name: lie.value for lie in Lie} == numbers
    assert set(LIE_TEXTS) == set(Lie)
    assert len(set(LIE_TEXTS.values())) == len(Lie)


def test_a_lie_in_words() -> None:
    error = PeerProtocolError(4, "data.to_enclave")
    assert error.lie is Lie.RECORD_ZERO_WORD
    assert str(error) == (
        "the peer broke the contract on data.to_enclave: the zero word of a record's header is not zero"
    )
    assert str(PeerProtocolError("odd geometry")) == "the peer broke the contract: odd geometry"
    assert PeerProtocolError("odd geometry").lie is None


def test_the_enclave_says_host() -> None:
    error = HostProtocolError.from_peer(PeerProtocolError(Lie.PADDING), "rpc.to_enclave")
    assert str(error) == "the host broke the contract on rpc.to_enclave: padding where no producer pads"
    assert error.lie is Lie.PADDING
    assert HostProtocolError.from_peer(PeerProtocolError("x", "y")).where == "y"


def test_the_family() -> None:
    assert issubclass(UsageError, WireError)
    assert issubclass(UsageError, ValueError)
    assert issubclass(HostProtocolError, PeerProtocolError)
    assert issubclass(PeerProtocolError, WireError)
    assert not issubclass(PeerProtocolError, ValueError)
