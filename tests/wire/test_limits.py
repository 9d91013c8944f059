"""One set of numbers: limits.py, _limits.pxd and what the C code was compiled with agree; the relations can fail."""

import re
from pathlib import Path

import pytest

from enclave_os import _codec
from enclave_os.wire import limits


def constants_of_pxd() -> dict[str, int]:
    text = (Path(__file__).parents[2] / "src/enclave_os/_limits.pxd").read_text()
    return {name: int(value, 0) for name, value in re.findall(r"^    ([A-Z_]+) = (\w+)$", text, re.MULTILINE)}


def constants_of_python() -> dict[str, int]:
    return {name: value for name, value in vars(limits).items() if name.isupper() and isinstance(value, int)}


def test_three_copies_agree() -> None:
    compiled = _codec.limits()
    assert compiled == constants_of_pxd()
    assert compiled == constants_of_python()


def test_every_limit_has_its_reason() -> None:
    text = Path(limits.__file__).read_text()
    reasons = set(re.findall(r'^([A-Z_]+) = [^\n]+\n"""\w', text, re.MULTILINE))
    assert reasons == set(constants_of_python())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RING_CAPACITY_MIN", 65_535),
        ("RING_CAPACITY_MIN", 16_384),
        ("RING_CAPACITY_MAX", 1 << 33),
        ("RECORD_HEADER_SIZE", 12),
        ("CONN_SLOT_BITS", 21),
        ("CONN_ID_INGRESS_MAX", 0xFFFF_FFFF),
        ("RING_CAPACITY_FLOOR", 16),
        ("CONNECT_TARGET_SIZE_MAX", 40_000),
    ],
)
def test_a_limit_that_contradicts_another_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: int) -> None:
    monkeypatch.setattr(limits, name, value)
    with pytest.raises(RuntimeError, match="contradict"):
        limits._check_relations()


def test_record_size_max() -> None:
    assert limits.record_size_max(65536) == 32760
    assert limits.record_size_max(64) == 24
