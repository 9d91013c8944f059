"""Counters to rates, and what a server may not make of that."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_os.errors import ServerProtocolError
from enclave_os_client.meter import COUNTERS_MAX, Reading, names, rate, read_metrics, rise


def reading(seconds: float, **counters: float) -> Reading:
    return Reading(seconds, 0, counters)


def test_a_counter_is_a_rate_and_a_gauge_a_value() -> None:
    before, now = (
        reading(10, requests_total=100, connections_live=5),
        reading(12, requests_total=300, connections_live=7),
    )
    assert rate("requests_total", before, now) == 100
    assert rate("connections_live", before, now) == 7
    assert rate("unknown_total", before, now) == rate("unknown", before, now) == 0


def test_without_a_past_there_is_no_rate() -> None:
    now = reading(12, requests_total=300)
    assert rate("requests_total", None, now) == 0
    assert rate("requests_total", reading(12, requests_total=100), now) == 0


def test_a_worker_started_anew_counts_from_nothing() -> None:
    assert rise("requests_total", reading(0, requests_total=1000), reading(1, requests_total=30)) == 30


@given(st.floats(0, 1e15), st.floats(0, 1e15), st.floats(0.001, 1e6))
def test_rates_are_never_negative(former: float, value: float, seconds: float) -> None:
    assert rate("a_total", reading(0, a_total=former), reading(seconds, a_total=value)) >= 0


def test_names_in_their_order() -> None:
    assert names([reading(0, b=1, a=1), reading(0, a=1, c=1)]) == ["b", "a", "c"]


def shown(counters: object, **worker: object) -> dict[str, Any]:
    """What `/metrics` shows of one worker."""
    return {"workers": [{"index": 3, "up": True, "counters": counters} | worker]}


def test_labels_stand_behind_a_name() -> None:
    name = 'wasm_function_calls_total{app="notes",function="a:b/c/add"}'
    before, now = (read_metrics(shown({name: n, "a": 1}), n)[3] for n in (10.0, 12.0))
    assert before is not None
    assert now is not None
    assert rate(name, before, now) == 1
    assert names([now]) == ["a"]
    for bad in ("{}", 'a{"\n"}', "a{", "a}", 'a{x="\x1b"}', "a{" + "x" * 600 + "}"):
        with pytest.raises(ServerProtocolError):
            read_metrics(shown({bad: 1}), 0.0)


def test_what_is_read() -> None:
    document = shown({"a_total": 1, "b": 0.5})
    document["workers"].insert(0, {"index": 4, "up": False, "counters": {}})
    assert read_metrics(document, 7.0) == {3: Reading(7.0, 3, {"a_total": 1, "b": 0.5}), 4: None}


@pytest.mark.parametrize(
    "document",
    [
        {}, {"worker": 0, "counters": {}}, {"workers": []}, {"workers": {}}, {"workers": [1]}, {"workers": [{}]},
        {"workers": shown({})["workers"] * 2}, {"workers": shown({})["workers"] * 5000},
        shown({}, index=True), shown({}, index=-1), shown({}, index="0"), shown({}, index=1 << 40),
        shown({}, index=None), shown({}, up=1), shown({}, up=None), shown([]), shown(None), shown({"a": "1"}),
        shown({"a": None}), shown({"a": True}), shown({"a": float("nan")}), shown({"a": float("inf")}),
        shown({"a": 10**4000}), shown({"\x1b[2J": 1}), shown({"a b": 1}), shown({"": 1}), shown({"é": 1}),
        shown({'{a="b"}': 1}), shown({"a" * 129: 1}),
        shown({f"a{index}": 1 for index in range(COUNTERS_MAX + 1)}),
    ],
)  # fmt: skip
def test_what_is_no_reading(document: dict[str, Any]) -> None:
    with pytest.raises(ServerProtocolError):
        read_metrics(document, 0)
