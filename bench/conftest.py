"""Figures per operation beside their aims, printed after pytest-benchmark's table, which knows whole rounds only."""

import re
import statistics
from collections.abc import Callable
from typing import Any

import pytest

# What of a file is measured at toy size, where all of it would take long.
TOY = {
    "bench_aead.py": re.compile(r"(?!test_openssl_speed)|.*\[aead-64\]"),
    "bench_carry.py": re.compile(".*data_channel"),
    "bench_egress.py": re.compile(".*one"),
    "bench_serve.py": re.compile(r"test_serve\[keepalive-8-enclave-os"),
}
FIGURES: pytest.StashKey[list[tuple[str, list[float], str]]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """For who wants to know whether the benchmarks still run, and no figures: with --benchmark-disable."""
    parser.addoption("--toy", action="store_true", help="of what takes long only one of a kind")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --toy: one of a kind."""
    if config.getoption("--toy"):
        items[:] = [item for item in items if item.path.name not in TOY or TOY[item.path.name].match(item.name)]


@pytest.fixture
def per_operation(benchmark: Any, request: pytest.FixtureRequest) -> Callable[..., list[float]]:
    """Run `once`, which returns nanoseconds an operation, in rounds; print median and spread beside the aim."""

    def measure(name: str, once: Callable[[], float], aim: str = "", rounds: int = 15) -> list[float]:
        samples: list[float] = []
        benchmark.pedantic(lambda: samples.append(once()), rounds=rounds, iterations=1)
        benchmark.extra_info.update(ns_per_operation=statistics.median(samples), aim=aim)
        request.config.stash.setdefault(FIGURES, []).append((name, samples, aim))
        return samples

    return measure


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """One line a figure: the median is for ratios, the least is what the machine can do when it is left alone."""
    figures = config.stash.get(FIGURES, [])
    if not figures:
        return
    terminalreporter.section("nanoseconds an operation")
    terminalreporter.write_line(f"{'':58}{'least':>10}{'median':>10}{'most':>10}   aim")
    for name, samples, aim in figures:
        low, middle, high = min(samples), statistics.median(samples), max(samples)
        terminalreporter.write_line(f"{name:58}{low:10.1f}{middle:10.1f}{high:10.1f}   {aim}")
