"""The enclave's image: made by a trial run of the real enclave, listed exactly, the same each time it is made."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import marshal
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from enclave_os.modules.wasm.settings import WasmSettings
from enclave_os.runtime.frozen import parse_frozen
from enclave_os.wire.gramine import MODULE_NEEDS
from enclave_os.wire.setting_table import Settings
from enclave_os.wire.settings import check
from enclave_os_host.gramine.build import COMPILER, FileList, ImageError, Listed, digest_of, make_image, read_image
from enclave_os_host.gramine.collect import C_LIBRARY, CollectError, collect
from enclave_os_host.gramine.image import Image
from enclave_os_host.gramine.installed import Gramine
from enclave_os_host.gramine.manifest import ManifestError, memory_needed, render, threads_needed
from enclave_os_host.gramine.trace import Trace, TraceError, module_points, trace

SETTINGS = check({"modules": {"enabled": ["helloworld"]}})
HOME = f"enclave-os/lib/python{sys.version_info.major}.{sys.version_info.minor}"
MODULES = {"helloworld": "enclave_os.modules.helloworld:HelloWorld"}

# Every key that our manifest has, with the type that Gramine 1.9's own schema gives it (graminelibos.manifest_check).
SCHEMA: dict[str, type | tuple[type, ...]] = {
    "libos.entrypoint": str, "loader.argv": list, "loader.entrypoint.uri": str, "loader.entrypoint.sha256": str,
    "loader.log_level": str, "loader.env.ENCLAVE_OS_MODE": str, "loader.env.ENCLAVE_OS_DOORBELL": str,
    "loader.env.ENCLAVE_OS_REGION.passthrough": bool, "loader.env.LANG": str, "loader.env.LD_LIBRARY_PATH": str,
    "loader.env.MALLOC_ARENA_MAX": str, "fs.root.type": str, "fs.root.uri": str, "fs.mounts": list,
    "sys.stack.size": str, "sys.brk.max_size": str, "sys.fds.limit": int, "sys.disallow_subprocesses": bool,
    "sys.enable_sigterm_injection": bool, "sgx.debug": bool, "sgx.remote_attestation": str, "sgx.isvprodid": int,
    "sgx.isvsvn": int, "sgx.edmm_enable": bool, "sgx.enclave_size": str, "sgx.max_threads": int,
    "sgx.use_exinfo": bool, "sgx.cpu_features.avx": str, "sgx.allowed_files": list, "sgx.trusted_files": list,
}  # fmt: skip


@pytest.fixture(scope="module")
def traced() -> Trace:
    """What the enclave loads, from a real run."""
    return trace(SETTINGS)


@pytest.fixture(scope="module")
def small(traced: Trace) -> Trace:
    """Some of it, for tests that need an image and not the whole of one."""
    modules = {name: traced.modules[name] for name in ("os", "enclave_os", "enclave_os.modules.helloworld")}
    return dataclasses.replace(traced, modules=modules, mapped=(), executable=(), opened=())


@pytest.fixture(scope="module")
def made(traced: Trace, tmp_path_factory: pytest.TempPathFactory) -> tuple[Image, FileList]:
    image = Image(tmp_path_factory.mktemp("image") / "image")
    return image, make_image(image, traced, MODULES)


@pytest.fixture
def gramine(tmp_path: Path) -> Gramine:
    """An installation by its files alone."""
    found = Gramine(tmp_path / "lib" / "gramine")
    found.runtime.mkdir(parents=True)
    found.libos.write_bytes(b"the library OS")
    for name in C_LIBRARY:
        (found.runtime / name).write_bytes(name.encode())
    return found


def flat(table: dict[str, Any], before: str = "") -> Iterator[tuple[str, object]]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


class TestList:
    def test_it_is_what_lies_there_and_nothing_else(self, made: tuple[Image, FileList]) -> None:
        image, files = made
        lying = {path for path in image.root.rglob("*") if not path.is_dir()}
        assert {image.root / file.path for file in files.files} == lying
        for file in files.files:
            data = (image.root / file.path).read_bytes()
            assert (file.size, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert not [path for path in image.root.rglob("*") if path.is_symlink()]
        assert read_image(image) == files

    def test_it_has_what_the_process_loaded_under_the_names_that_it_asks_for(
        self, traced: Trace, made: tuple[Image, FileList]
    ) -> None:
        _, files = made
        paths = {str(file.path) for file in files.files}
        for wanted in (
            "enclave-os/python", "enclave-os/python._pth", "enclave-os/modules.json", "enclave-os/lib/libssl.so.3",
            f"{HOME}/os.pyc", f"{HOME}/encodings/utf_8.pyc", f"{HOME}/traceback.pyc",
            f"{HOME}/site-packages/enclave_os/__main__.pyc", f"{HOME}/site-packages/enclave_os/modules/helloworld.pyc",
            f"{HOME}/site-packages/uvloop/__init__.pyc",
        ):  # fmt: skip
            assert wanted in paths
        loaded = {name for name in traced.modules if name.startswith("enclave_os")}
        ours = {path for path in paths if path.startswith(f"{HOME}/site-packages/enclave_os/")}
        assert len(ours) == len(loaded)

    def test_it_has_no_cache_no_host_no_test_and_no_c_library(self, made: tuple[Image, FileList]) -> None:
        _, files = made
        for file in files.files:
            assert file.path.suffix in (".pyc", ".so", ".json", "._pth", "") or ".so." in file.path.name, file.path
            assert file.path.name not in C_LIBRARY
            for part in file.path.parts:
                assert part not in ("__pycache__", "enclave_os_host", "enclave_os_client", "tests", "pytest", "host")
        assert {"libc.so.6", "ld-linux-x86-64.so.2"} <= set(files.c_library)

    def test_a_module_that_is_not_enabled_is_not_in_it(self, made: tuple[Image, FileList]) -> None:
        _, files = made
        assert not [file.path for file in files.files if "wasmtime" in file.path.parts]

    def test_two_builds_are_the_same_to_the_bit(
        self, made: tuple[Image, FileList], gramine: Gramine, tmp_path: Path
    ) -> None:
        image, files = made
        again = Image(tmp_path / "elsewhere")
        second = make_image(again, trace(SETTINGS), MODULES)
        assert second == files
        assert again.files.read_bytes() == image.files.read_bytes()
        # Relative paths alone: where an image lies is not measured.
        assert render(SETTINGS, second, gramine) == render(SETTINGS, files, gramine)

    def test_its_hash_is_that_of_sha256sum(self) -> None:
        listed = [Listed(PurePosixPath("b"), 1, "22" * 32), Listed(PurePosixPath("a"), 1, "11" * 32)]
        said = b"11" * 32 + b"  a\n" + b"22" * 32 + b"  b\n"
        assert digest_of(listed) == hashlib.sha256(said).hexdigest()

    def test_the_enclave_reads_the_same_hash_and_modules(self, made: tuple[Image, FileList]) -> None:
        image, files = made
        frozen = parse_frozen((image.root / "enclave-os" / "modules.json").read_bytes())
        assert [(point.name, point.value) for point in frozen.modules] == list(MODULES.items())
        others = [file for file in files.files if file.path.name != "modules.json"]
        assert frozen.files_sha256.hex() == digest_of(others)


class TestBytecode:
    def test_it_is_that_of_its_source_and_nothing_is_held_against_one(
        self, traced: Trace, made: tuple[Image, FileList]
    ) -> None:
        image, files = made
        compiled = [file.path for file in files.files if file.path.suffix == ".pyc"]
        sources = json.loads(image.files.read_bytes())["sources"]
        assert {str(path.with_suffix(".py")) for path in compiled} == set(sources)
        for name in ("os", "enclave_os.modules.helloworld"):
            source = traced.modules[name].read_bytes()
            place = next(path for path in compiled if str(path).endswith(f"/{name.replace('.', '/')}.pyc"))
            assert sources[str(place.with_suffix(".py"))] == hashlib.sha256(source).hexdigest()
            data = (image.root / place).read_bytes()
            assert data[:4] == importlib.util.MAGIC_NUMBER
            assert data[4:8] == b"\1\0\0\0"  # by hash, unchecked: PEP 552
            assert data[8:16] == importlib.util.source_hash(source)
            code = marshal.loads(data[16:])
            assert code.co_filename == f"/{place.with_suffix('.py')}"

    def test_no_folder_of_ours_is_named(self, made: tuple[Image, FileList]) -> None:
        image, files = made
        for file in files.files:
            if file.path.suffix == ".pyc":
                assert str(Path(__file__).parents[2]).encode() not in (image.root / file.path).read_bytes()

    def test_it_does_not_depend_on_the_process_that_compiled_it(self, tmp_path: Path) -> None:
        """marshal's present format writes down who else refers to a constant, and sets come in the order of a hash."""
        source = tmp_path / "source.py"
        source.write_text("X = {'-', 'ab', 'c d'}\ndef f(a, b=('-', 'c d')):\n    return a in {'x', 'y', '-', 2.5}\n")
        made = set()
        for number in range(4):
            target = tmp_path / f"{number}.pyc"
            work = json.dumps([[str(source), "/enclave-os/source.py", str(target)]])
            before = f"import sys\nkept = [sys.intern(text) for text in ('-', 'ab', 'c d')][:{number}]\n"
            run = f"{before}import runpy\nrunpy.run_path({str(COMPILER)!r}, run_name='__main__')"
            environment = {"PYTHONHASHSEED": str(number)}
            command = [sys.executable, "-S", "-B", "-c", run]
            subprocess.run(command, input=work, env=environment, text=True, check=True, timeout=60)
            made.add(target.read_bytes())
        assert len(made) == 1

    def test_a_source_that_does_not_compile_is_said(self, small: Trace, tmp_path: Path) -> None:
        bad = tmp_path / "os.py"
        bad.write_text("def f(:\n")
        wrong = dataclasses.replace(small, modules={**small.modules, "os": bad})
        with pytest.raises(ImageError, match=r"cannot be compiled: .*SyntaxError"):
            make_image(Image(tmp_path / "image"), wrong, MODULES)


class TestGuards:
    def test_a_changed_file_is_found(self, small: Trace, tmp_path: Path) -> None:
        image = Image(tmp_path / "image")
        make_image(image, small, MODULES)
        victim = image.root / HOME / "os.pyc"
        victim.write_bytes(victim.read_bytes() + b"\n")
        with pytest.raises(ImageError, match=r"1 files of the image are not what its list says"):
            read_image(image)

    def test_a_file_too_many_is_found(self, small: Trace, tmp_path: Path) -> None:
        image = Image(tmp_path / "image")
        make_image(image, small, MODULES)
        (image.root / "enclave-os" / "more.py").touch()
        with pytest.raises(ImageError, match=r"more\.py for one"):
            read_image(image)

    def test_nothing_else_is_overwritten(self, small: Trace, tmp_path: Path) -> None:
        (tmp_path / "precious").touch()
        with pytest.raises(ImageError, match="something else than an enclave image"):
            make_image(Image(tmp_path), small, MODULES)
        assert (tmp_path / "precious").exists()

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": 5}', '{"files": [{}], "c_library": []}'])
    def test_a_damaged_list_is_none(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "files.json").write_text(text)
        with pytest.raises(ImageError, match="is damaged"):
            read_image(Image(tmp_path))

    def test_no_image_says_what_to_run(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match="enclave-os gramine manifest"):
            read_image(Image(tmp_path))

    @pytest.mark.parametrize("name", ["enclave_os_host.cli", "enclave_os_client", "pytest", "tests.e2e"])
    def test_what_has_no_business_inside_stops_the_build(self, traced: Trace, name: str) -> None:
        wrong = dataclasses.replace(traced, modules={**traced.modules, name: Path(os.__file__)})
        with pytest.raises(CollectError, match="no business"):
            collect(wrong)

    def test_two_files_in_one_place_stop_it(self, small: Trace, tmp_path: Path) -> None:
        other = tmp_path / "helloworld.py"
        other.write_text("")
        wrong = {**small.modules, "enclave_os.modules.helloworld": other, "enclave_os.modules.hello": other}
        first = tmp_path / "first" / "helloworld.py"
        first.parent.mkdir()
        first.write_text("")
        wrong["enclave_os.modules.hello"] = first
        with pytest.raises(CollectError, match="would both be"):
            collect(dataclasses.replace(small, modules=wrong))

    def test_a_cache_without_its_source_stops_it(self, small: Trace, tmp_path: Path) -> None:
        wrong = dataclasses.replace(small, modules={**small.modules, "odd": tmp_path / "odd.pyc"})
        with pytest.raises(CollectError, match="neither a source nor a shared object"):
            collect(wrong)

    def test_what_is_mapped_and_unknown_stops_it(self, traced: Trace) -> None:
        with pytest.raises(CollectError, match="nothing that is known opened it"):
            collect(dataclasses.replace(traced, executable=(*traced.executable, "/usr/lib/odd.so")))

    def test_a_module_that_is_not_installed(self) -> None:
        with pytest.raises(TraceError, match="no module 'hellowrld' is installed; did you mean helloworld"):
            module_points(check({"modules": {"enabled": ["hellowrld"]}}))


class TestManifest:
    def text(self, made: tuple[Image, FileList], gramine: Gramine | None, settings: Settings = SETTINGS) -> str:
        return render(settings, made[1], gramine)

    def test_it_is_toml_of_known_keys(self, made: tuple[Image, FileList], gramine: Gramine) -> None:
        found = dict(flat(tomllib.loads(self.text(made, gramine))))
        assert set(found) == set(SCHEMA)
        for name, kind in SCHEMA.items():
            assert type(found[name]) is kind, name

    def test_it_trusts_exactly_the_image_and_gramines_c_library(
        self, made: tuple[Image, FileList], gramine: Gramine
    ) -> None:
        _, files = made
        manifest = tomllib.loads(self.text(made, gramine))
        trusted = {entry["uri"]: entry["sha256"] for entry in manifest["sgx"]["trusted_files"]}
        image = {f"file:root/{file.path}": file.sha256 for file in files.files}
        library = {f"file:{gramine.runtime / name}" for name in files.c_library}
        assert set(trusted) == set(image) | library
        assert all(trusted[uri] == digest for uri, digest in image.items())
        assert manifest["loader"]["entrypoint"]["uri"] == f"file:{gramine.libos}"

    def test_nothing_is_writable_but_the_regions(self, made: tuple[Image, FileList], gramine: Gramine) -> None:
        manifest = tomllib.loads(self.text(made, gramine))
        assert manifest["sgx"]["allowed_files"] == ["dev:/dev/shm/enclave-os/"]
        assert [mount.get("type", "chroot") for mount in manifest["fs"]["mounts"]] == ["chroot", "untrusted_shm"]
        assert manifest["fs"]["root"] == {"type": "chroot", "uri": "file:root"}
        assert "file_check_policy" not in manifest["sgx"]

    def test_the_command_line_is_fixed_and_the_host_has_one_word(
        self, made: tuple[Image, FileList], gramine: Gramine
    ) -> None:
        loader = tomllib.loads(self.text(made, gramine))["loader"]
        assert loader["argv"] == ["/enclave-os/python", "-I", "-B", "-m", "enclave_os"]
        assert [name for name, value in loader["env"].items() if isinstance(value, dict)] == ["ENCLAVE_OS_REGION"]
        assert not [name for name in loader if name.startswith("insecure")]

    def test_gramines_c_library_comes_first(self, made: tuple[Image, FileList], gramine: Gramine) -> None:
        manifest = tomllib.loads(self.text(made, gramine))
        assert manifest["loader"]["env"]["LD_LIBRARY_PATH"].split(":") == ["/lib", "/enclave-os/lib"]
        assert manifest["fs"]["mounts"][0] == {"path": "/lib", "uri": f"file:{gramine.runtime}"}

    def test_debug_and_edmm_only_when_asked_for(self, made: tuple[Image, FileList], gramine: Gramine) -> None:
        plain = tomllib.loads(self.text(made, gramine))["sgx"]
        assert (plain["debug"], plain["edmm_enable"], plain["enclave_size"]) == (False, False, "2048M")
        asked = check({"gramine": {"debug": True, "edmm": True, "enclave_size": "64GiB", "threads": 64, "isv_svn": 7}})
        found = tomllib.loads(self.text(made, gramine, asked))["sgx"]
        assert (found["debug"], found["edmm_enable"], found["enclave_size"]) == (True, True, "65536M")
        assert (found["max_threads"], found["isvsvn"]) == (64, 7)

    def test_an_enclave_that_is_too_small_is_refused(self, made: tuple[Image, FileList], gramine: Gramine) -> None:
        small = check({"gramine": {"enclave_size": "512MiB"}})
        assert memory_needed(small) > 512 << 20
        with pytest.raises(ManifestError, match=r"gramine\.enclave_size: 512 MiB are less than"):
            self.text(made, gramine, small)
        self.text(made, gramine, check({"gramine": {"enclave_size": "512MiB", "edmm": True}}))

    def test_what_modules_may_come_to_need_counts(self, made: tuple[Image, FileList], gramine: Gramine) -> None:
        """Without EDMM memory and threads of an enclave are what the manifest says, and a call would find none left."""
        enabled = {"enabled": ["helloworld", "wasm"]}
        plain = check({"modules": enabled})
        assert memory_needed(plain) - memory_needed(SETTINGS) == 2 << 30
        assert threads_needed(plain) - threads_needed(SETTINGS) == 16 + 2
        with pytest.raises(ManifestError, match=r"lower .*, kv\.memory, module\.wasm\.memory_total, or set"):
            self.text(made, gramine, plain)
        larger = {"enclave_size": "4GiB"}
        self.text(made, gramine, check({"modules": enabled, "gramine": larger}))
        less = {"wasm": {"memory_total": 1 << 28, "memory_max": 1 << 26}}
        self.text(made, gramine, check({"modules": enabled, "module": less}))
        many = {"wasm": {"threads": 64}}
        with pytest.raises(ManifestError, match=r"gramine\.threads: 32 are less than the 78 .* lower module\.wasm"):
            self.text(made, gramine, check({"modules": enabled, "module": many, "gramine": larger}))
        self.text(made, gramine, check({"modules": enabled, "module": many, "gramine": {**larger, "threads": 78}}))
        self.text(made, gramine, check({"modules": enabled, "module": many, "gramine": {"edmm": True}}))
        rows = check({"kv": {"memory": "2GiB"}})
        with pytest.raises(ManifestError, match=r"gramine\.enclave_size"):
            self.text(made, gramine, rows)

    def test_the_needs_of_our_modules_are_their_own_defaults(self) -> None:
        usual = WasmSettings()
        needs = MODULE_NEEDS["wasm"]
        assert (needs.memory, needs.threads) == (usual.memory_total, usual.threads)
        assert {needs.memory_key, needs.threads_key} <= {field.name for field in dataclasses.fields(usual)}

    def test_without_gramine_it_can_be_read_and_not_run(self, made: tuple[Image, FileList]) -> None:
        manifest = tomllib.loads(self.text(made, None))
        assert manifest["loader"]["entrypoint"]["uri"] == "file:GRAMINE-IS-NOT-INSTALLED-HERE"

    def test_a_path_that_toml_would_read_otherwise(self, made: tuple[Image, FileList], tmp_path: Path) -> None:
        odd = Gramine(tmp_path / 'a"b')
        odd.runtime.mkdir(parents=True)
        odd.libos.write_bytes(b"")
        for name in C_LIBRARY:
            (odd.runtime / name).touch()
        with pytest.raises(ManifestError, match="cannot stand in a manifest"):
            self.text(made, odd)

    def test_number_and_size_of_the_files_are_tracked(
        self, made: tuple[Image, FileList], gramine: Gramine, record_property: Any
    ) -> None:
        """Start-up grows with both: Gramine hashes every file that is opened."""
        image, files = made
        record_property("trusted_files", files.count)
        record_property("trusted_bytes", files.size)
        assert f"{files.count + len(files.c_library)} files" in self.text(made, gramine)
        document = json.loads(image.files.read_bytes())
        assert (document["count"], document["size"], document["sha256"]) == (files.count, files.size, files.sha256)
        # What the least server has; a step over it is worth a look at what was imported, and why.
        assert files.count < 650
        assert files.size < 100 << 20
