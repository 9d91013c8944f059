"""The fuzz targets of the wire for a few thousand programs: from Hypothesis, which shrinks, and from their own draw."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fuzz import fuzz_codec, fuzz_ring


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=200))
def test_ring(program: bytes) -> None:
    fuzz_ring.fuzz_one(program)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80))
def test_codec(program: bytes) -> None:
    fuzz_codec.fuzz_one(program)


def test_ring_random() -> None:
    draw = random.Random(11)
    for _ in range(3000):
        fuzz_ring.fuzz_one(draw.randbytes(draw.randrange(200)))


def test_codec_random() -> None:
    draw = random.Random(11)
    decoded = sum(fuzz_codec.fuzz_one(fuzz_codec.program_of(draw)) for _ in range(20_000))
    assert decoded > 5000, "the generator reaches what lies behind the header checks"
