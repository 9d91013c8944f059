"""KV11: no two truths in one boot of worker 0, whatever the host does; the share of `make siege` that each run does."""

from __future__ import annotations

import asyncio

import pytest

from tests.modules.ranges_siege import besieged, shorten


@pytest.mark.parametrize("count", [2, 3])
def test_no_two_truths_whatever_the_host_does(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    shorten(monkeypatch.setattr)
    siege = asyncio.run(besieged(count, seed=count))
    assert siege.history.broken() == []
