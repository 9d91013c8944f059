"""The two configurations of a layer-4 front that we ship say the same: these names lead there, with PROXY headers.

HAProxy's runs end to end (`tests/e2e/test_front.py`). Caddy's needs its layer4 module, which no distribution packages,
so its keys are held against what that module's source takes (caddy-l4 0.1: layer4 routes, matcher `tls` with `sni`,
handler `proxy` with `proxy_protocol` and `upstreams` of `dial`).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

PACKAGING = Path(__file__).parents[2] / "packaging"


def of_haproxy() -> dict[str, str]:
    """Name to address; each server line must send and check with PROXY headers."""
    text = (PACKAGING / "haproxy.cfg").read_text()
    assert re.search(r"^\s+mode tcp$", text, re.MULTILINE)
    chosen = re.findall(r"use_backend (\w+) if \{ req\.ssl_sni -i ([\w.-]+) \}", text)
    lines = re.findall(r"^backend (\w+)$(?:\n\s+#.*$)*\n\s+server \w+ (\S+) (.+)$", text, re.MULTILINE)
    servers = {backend: address for backend, address, _ in lines}
    assert {options for *_, options in lines} == {"send-proxy-v2 check check-send-proxy"}
    return {name: servers[backend] for backend, name in chosen}


def of_caddy() -> dict[str, str]:
    document: dict[str, Any] = json.loads((PACKAGING / "Caddyfile.json").read_text())
    found: dict[str, str] = {}
    (server,) = document["apps"]["layer4"]["servers"].values()
    assert set(server) == {"listen", "routes"}
    for route in server["routes"]:
        (match,), (handler,) = route["match"], route["handle"]
        ((name,),) = [match["tls"]["sni"]]
        assert set(route) == {"match", "handle"}
        assert set(match["tls"]) == {"sni"}
        assert set(handler) == {"handler", "proxy_protocol", "upstreams"}
        assert (handler["handler"], handler["proxy_protocol"]) == ("proxy", "v2")
        (upstream,) = handler["upstreams"]
        assert set(upstream) == {"dial"}, "tls in here would end TLS in the front"
        (found[name],) = upstream["dial"]
    return found


def test_both_lead_to_the_same_enclaves() -> None:
    assert of_haproxy() == of_caddy() == {"a.example": "10.0.0.11:443", "b.example": "10.0.0.12:443"}
