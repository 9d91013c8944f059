"""The reader of collateral: nine members, once each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from enclave_os.errors import AttestationError
from enclave_os.evidence.collateral import COLLATERAL_SIZE_MAX, Collateral

TEXT = (Path(__file__).parents[1] / "vectors" / "dcap" / "sgx_quote_collateral.json").read_text()


def test_it_survives_its_own_form() -> None:
    assert Collateral.from_json(Collateral.from_json(TEXT).to_json()) == Collateral.from_json(TEXT.encode())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda document: document.pop("pck_crl"),
        lambda document: document.update(pck_certificate_chain="-----BEGIN CERTIFICATE-----"),
        lambda document: document.update(tcb_info=1),
        lambda document: document.update(pck_crl="0g"),
        lambda document: document.update(pck_crl=document["pck_crl"][:-1]),
        lambda document: document.update(pck_crl=" " + document["pck_crl"]),
    ],
)
def test_other_members_and_other_forms_are_refused(spoil: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(TEXT)
    spoil(document)
    with pytest.raises(AttestationError) as caught:
        Collateral.from_json(json.dumps(document))
    assert caught.value.code == "bad_collateral"


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "{", "\ufeff{}", '{"a": 1, "a": 2}', "[" * 100_000, " " * (COLLATERAL_SIZE_MAX + 1)]
)
def test_what_is_no_collateral_is_refused(text: str) -> None:
    with pytest.raises(AttestationError):
        Collateral.from_json(text)


def test_a_member_twice_is_refused() -> None:
    twice = TEXT.rstrip().removesuffix("}") + ', "tcb_info": "{}"}'
    json.loads(twice)  # Python's reader would take the last
    with pytest.raises(AttestationError):
        Collateral.from_json(twice)
