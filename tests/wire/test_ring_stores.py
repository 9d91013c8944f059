"""RG5 and RG6: the enclave's side stores whole aligned words in shared memory, with nothing in them but the payload.

INTEL-SA-00615: a store to memory outside the enclave that is not an aligned multiple of 8 bytes can leak stale data
when the host backs that memory with MMIO. Four looks: the compiled copies, the compiled fence, the sources, and the
memory after many frames.
"""

import random
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from enclave_os._ring import DEBUG_BUILD
from enclave_os.wire import READY, encode_frame
from enclave_os.wire.limits import RING_HEADER_SIZE
from tests.wire.rings import make_ring, pattern

SOURCE = Path(__file__).parents[2] / "src/enclave_os"
FRAMES = 100_000 if DEBUG_BUILD else 1_000_000
CANARY = b"\xc0\xff\xee canary secret \xc0\xff\xee"

PROBE = """
#include "_native.h"
void probe_copy_out(uint8_t *to, const uint8_t *from, size_t size) { eos_copy_out(to, from, size); }
void probe_copy_in(uint8_t *to, const uint8_t *from, size_t size) { eos_copy_in(to, from, size); }
void probe_store(uint64_t *to, uint64_t value) { eos_store_release(to, value); eos_store_relaxed(to + 1, value); }
uint64_t probe_exchange(uint64_t *to, uint64_t value) { return eos_exchange(to, value); }
uint64_t probe_load_twice(uint64_t *from) { return eos_load_relaxed(from) + eos_load_relaxed(from); }
void probe_publish(uint64_t *cursor, uint64_t *flag, uint64_t value, uint64_t *out) {
    eos_store_release(cursor, value);
    eos_fence();
    *out = eos_load_relaxed(flag);
}
"""
# Intel syntax: `mov QWORD PTR [rdi], rax`; a store's first operand is memory.
MEMORY = r"(BYTE|WORD|DWORD|QWORD|XMMWORD|YMMWORD) PTR ([^,]*\[[^\]]+\])"
STORE = re.compile(rf"^(?:lock )?(\w+)\s+{MEMORY}(?:,|$)")
LOAD = re.compile(rf"^(\w+)\s+\w+, {MEMORY}")
READ_ONLY = ("cmp", "test", "nop", "call", "jmp", "push", "prefetch")


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Assembly of each probe function, compiled with the fast build's flags."""
    compiler = (sysconfig.get_config_var("CC") or "cc").split()
    if shutil.which(compiler[0]) is None or sysconfig.get_platform() != "linux-x86_64":
        pytest.skip("needs a C compiler for x86-64")
    folder = tmp_path_factory.mktemp("probe")
    (folder / "probe.c").write_text(PROBE)
    command = [*compiler, "-O3", "-fPIC", "-masm=intel", "-fno-asynchronous-unwind-tables", "-I", str(SOURCE), "-S"]
    subprocess.run([*command, str(folder / "probe.c"), "-o", str(folder / "probe.s")], check=True)
    functions: dict[str, list[str]] = {}
    name = ""
    for line in (folder / "probe.s").read_text().splitlines():
        if match := re.match(r"(probe_\w+):", line):
            name = match.group(1)
            functions[name] = []
        elif name and line.startswith("\t") and not line.startswith("\t."):
            functions[name].append(line.strip())
    return functions


def accesses(pattern: re.Pattern[str], lines: list[str]) -> list[tuple[str, str, str]]:
    """(instruction, width, address) of each access that is not to the stack."""
    found = [match.groups() for line in lines if (match := pattern.match(line))]
    return [
        (name, width, address)
        for name, width, address in found
        if not name.startswith(READ_ONLY) and not re.search(r"\br(sp|bp)\b", address)
    ]


def stores(lines: list[str]) -> list[tuple[str, str, str]]:
    return accesses(STORE, lines)


def test_copy_out_stores_whole_quadwords_only(probe: dict[str, list[str]]) -> None:
    lines = probe["probe_copy_out"]
    found = stores(lines)
    assert found, "the pattern finds the stores"
    assert {width for _, width, _ in found} == {"QWORD"}
    assert {name for name, _, _ in found} == {"mov"}
    strings = [line for line in lines if re.match(r"rep|movs[bwd]\b|stos", line)]
    assert strings
    assert all(re.fullmatch(r"rep[; ]*movsq", line) for line in strings)
    assert not [line for line in lines if line.startswith("call")], "no libc routine with its own idea of widths"


def test_single_words_are_stored_once_and_whole(probe: dict[str, list[str]]) -> None:
    assert [width for _, width, _ in stores(probe["probe_store"])] == ["QWORD", "QWORD"]
    assert [line for line in probe["probe_exchange"] if line.startswith("xchg")], "a locked exchange"
    assert {width for _, width, _ in stores(probe["probe_exchange"])} <= {"QWORD"}


def test_two_loads_are_two_loads_and_one_is_one(probe: dict[str, list[str]]) -> None:
    """RG4 in the compiled code: the compiler neither merges nor repeats what the source says."""
    lines = [line for line in probe["probe_load_twice"] if "[rdi]" in line]
    assert len(lines) == 2


def test_copy_in_loads_whole_quadwords_only(probe: dict[str, list[str]]) -> None:
    """INTEL-SA-00657: a narrow load of what may be MMIO can return stale data, so none is made."""
    lines = probe["probe_copy_in"]
    found = accesses(LOAD, lines)
    assert found, "the pattern finds the loads"
    assert {(name, width) for name, width, _ in found} == {("mov", "QWORD")}
    strings = [line for line in lines if re.match(r"rep|movs[bwd]\b|lods", line)]
    assert all(re.fullmatch(r"rep[; ]*movsq", line) for line in strings)


def test_the_fence_stands_between_store_and_load(probe: dict[str, list[str]]) -> None:
    lines = probe["probe_publish"]
    store = next(index for index, line in enumerate(lines) if STORE.match(line) and "[rdi]" in line)
    fence = next(index for index, line in enumerate(lines) if line.startswith(("lock or", "mfence")))
    load = next(index for index, line in enumerate(lines) if line.startswith("mov") and line.endswith("[rsi]"))
    assert store < fence < load


def test_a_probe_with_a_narrow_store_is_found() -> None:
    """The pattern can fail: these are what a plain memcpy compiles to."""
    for line in ("mov\tBYTE PTR [rdi+8], al", "movups\tXMMWORD PTR [rdi], xmm0", "mov\tDWORD PTR [rdi], eax"):
        assert [width for _, width, _ in stores([line])] != ["QWORD"]
        assert stores([line])


def without_comments(text: str) -> str:
    return re.sub(r"#.*", "", text)


def test_the_ring_touches_shared_memory_through_the_floor_only() -> None:
    """Sources: no assignment through a shared pointer, and memset only on the host's side of ring_commit."""
    text = without_comments((SOURCE / "_ring.pxd").read_text())
    shared = r"(?:data|produced_word|consumed_word|consumer_waits|producer_waits|record)"
    assert not re.search(rf"\b{shared}\[", text), "an index into shared memory"
    assert not re.search(rf"{shared}\[0\]\s*=", text)
    memsets = [line.strip() for line in text.splitlines() if re.search(r"\bmem(set|cpy|move)\(", line)]
    assert [line for line in memsets if "sizeof(ring_" not in line] == [
        "memset(record + RECORD_HEADER_SIZE + size, 0, 8 - (size & 7))"
    ]
    guarded = re.search(r"if not p\.wordwise and size & 7:\n\s+memset\(record", text)
    assert guarded, "the enclave's side never gets there"


def test_python_batches_copy_words_on_the_enclaves_side() -> None:
    text = without_comments((SOURCE / "_ring.pyx").read_text())
    assert re.findall(r"\bmem(?:cpy|set|move)\(.*", text) == ["memcpy(to, source, <size_t>PyBytes_GET_SIZE(data))"]
    assert re.search(r"if ring\.wordwise:\n\s+eos_copy_out\(.*\n\s+else:\n\s+memcpy", text)


@pytest.mark.parametrize("size", range(41))
def test_the_tail_of_a_record_is_zero(size: int) -> None:
    """What follows `size` payload bytes in the same buffer stays private."""
    ring = make_ring(128)
    ring.memory[RING_HEADER_SIZE:] = b"\xaa" * 128
    assert ring.producer.produce((pattern(size) + CANARY)[:size]) == READY
    ring.producer.publish()
    end = 8 + (size + 7) // 8 * 8
    data = bytes(ring.memory[RING_HEADER_SIZE:])
    assert data[:8] == size.to_bytes(8, "little")
    assert data[8 : 8 + size] == pattern(size)
    assert data[8 + size : end] == bytes(end - 8 - size)
    assert data[end:] == b"\xaa" * (128 - end)


def test_a_canary_beside_every_payload_never_appears_in_the_region() -> None:
    """RG5: frames are cut out of buffers full of a secret; the whole mapping holds none of it, nor any part."""
    draw = random.Random(5)
    ring = make_ring(16384)
    secret = CANARY * 12
    parts = {CANARY[start : start + 8] for start in range(len(CANARY) - 7)}
    batch_size = 50
    for turn in range(FRAMES // batch_size):
        batch = []
        for index in range(batch_size):
            size = draw.getrandbits(7)
            buffer = secret + bytes(size) + secret
            batch.append(encode_frame(2, index + 1, buffer[len(secret) : len(secret) + size]))
        assert ring.producer.produce_many(batch) == batch_size
        assert ring.consumer.consume_many(batch_size, 1 << 20) == batch
        if turn % 500 == 0:
            assert not any(part in ring.memory for part in parts)
    memory = bytes(ring.memory)
    assert not any(part in memory for part in parts)
    # Zero payloads, so all that is not zero is a header: a size below 256 or padding, then kind and conn_id.
    header_words = {memory[index : index + 8] for index in range(RING_HEADER_SIZE, len(memory), 8)} - {bytes(8)}
    for word in header_words:
        value = int.from_bytes(word, "little")
        is_frame = value & 0xFFFF_FFFF == 2 and 1 <= value >> 32 <= batch_size
        assert value < 256 or value == 0xFFFF_FFFF or is_frame
