"""`enclave-os gramine` and the choice of a way to run: what is refused, in which words; what the signer is asked."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from enclave_os.wire.setting_table import Settings
from enclave_os.wire.settings import check
from enclave_os_host import cli
from enclave_os_host.gramine.build import make_image, read_image
from enclave_os_host.gramine.image import Image
from enclave_os_host.gramine.installed import INSTALL, find_gramine
from enclave_os_host.gramine.launch import NoEnclave, choose_launch
from enclave_os_host.gramine.manifest import render
from enclave_os_host.gramine.signature import SIZE, SignatureError, make_key, read_signature
from enclave_os_host.gramine.trace import Trace

PATH = os.environ["PATH"]
# Takes what Gramine's signer takes and writes what it writes: a SIGSTRUCT whose measurement is the manifest's hash.
STAND_IN = """#!{python}
import hashlib, pathlib, sys
if pathlib.Path(__file__).with_name("broken").exists():
    sys.exit(3)
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
manifest = pathlib.Path(given["--manifest"]).read_bytes()
assert pathlib.Path(given["--key"]).read_bytes().startswith(b"-----BEGIN RSA PRIVATE KEY-----")
made = bytearray({size})
made[:16] = bytes.fromhex("{header}")
made[960:992] = hashlib.sha256(manifest).digest()
pathlib.Path(given["--output"]).write_bytes(manifest)
pathlib.Path(given["--sigfile"]).write_bytes(made)
print("noise")
"""
HEADER = bytes.fromhex("06000000E10000000000010000000000")


@pytest.fixture
def search(tmp_path: Path) -> str:
    """A Gramine of empty files, and the folder of its commands."""
    commands = tmp_path / "usr" / "bin"
    commands.mkdir(parents=True)
    for name in ("gramine-direct", "gramine-sgx"):
        (commands / name).write_text("#!/bin/sh\n")
        (commands / name).chmod(0o755)
    library = tmp_path / "usr" / "lib64" / "gramine"
    (library / "runtime" / "glibc").mkdir(parents=True)
    (library / "libsysdb.so").touch()
    return str(commands)


@pytest.fixture
def image(tmp_path: Path) -> Image:
    made = Image(tmp_path / "image")
    made.folder.mkdir()
    made.manifest.touch()
    return made


def settings(how: str, image: Image) -> Settings:
    return check({"server": {"enclave": how, "state_dir": "/nonexistent"}, "gramine": {"image": str(image.folder)}})


class TestChoice:
    def test_direct_starts_in_the_images_folder(self, search: str, image: Image) -> None:
        launch, line = choose_launch(settings("direct", image), search=search)
        assert launch.command == ("/usr/bin/env", "-C", str(image.folder), f"{search}/gramine-direct", "enclave_os")
        assert launch.gramine
        assert line.startswith("direct: ")
        assert "can read what it holds" in line

    def test_sgx_needs_device_loader_image_and_signature_and_says_which(
        self, search: str, image: Image, tmp_path: Path
    ) -> None:
        device = tmp_path / "sgx_enclave"
        with pytest.raises(NoEnclave, match="enclave-os doctor"):
            choose_launch(settings("sgx", image), search=search, device=device)
        device.touch()
        with pytest.raises(NoEnclave, match="is not signed: enclave-os gramine sign"):
            choose_launch(settings("sgx", image), search=search, device=device)
        image.signed_manifest.touch()
        image.signature.touch()
        launch, line = choose_launch(settings("sgx", image), search=search, device=device)
        assert (launch.how, line) == ("sgx", "sgx: under gramine-sgx")
        image.manifest.unlink()
        with pytest.raises(NoEnclave, match="enclave-os gramine manifest"):
            choose_launch(settings("sgx", image), search=search, device=device)

    def test_auto_takes_sgx_when_nothing_lacks_and_else_says_what(
        self, search: str, image: Image, tmp_path: Path
    ) -> None:
        device = tmp_path / "sgx_enclave"
        launch, line = choose_launch(settings("auto", image), search=search, device=device)
        assert launch.how == "simulated"
        assert line.endswith(f"Not sgx: no {device}")
        for file in (device, image.signed_manifest, image.signature):
            file.touch()
        assert choose_launch(settings("auto", image), search=search, device=device)[0].how == "sgx"
        launch, line = choose_launch(settings("auto", image), search="/nonexistent", device=device)
        assert launch.how == "simulated"
        assert line.endswith("Not sgx: no gramine-sgx on the path")

    def test_gramine_run_never_takes_a_plain_process(self, search: str, image: Image, tmp_path: Path) -> None:
        device = tmp_path / "sgx_enclave"
        launch, _ = choose_launch(settings("auto", image), only_gramine=True, search=search, device=device)
        assert launch.how == "direct"

    @pytest.mark.parametrize("how", ["direct", "sgx"])
    def test_a_loader_without_its_library_is_no_gramine(self, how: str, image: Image, search: str) -> None:
        (Path(search).parent / "lib64" / "gramine" / "libsysdb.so").unlink()
        assert find_gramine(search) is None
        with pytest.raises(NoEnclave, match=f"--enclave {how} needs gramine-{how}"):
            choose_launch(settings(how, image), search=search)


class TestSignature:
    def test_a_key_is_what_einit_takes(self) -> None:
        key = load_pem_private_key(make_key(), None)
        assert isinstance(key, RSAPrivateKey)
        assert (key.key_size, key.public_key().public_numbers().e) == (3072, 3)

    def test_what_it_says_is_read(self, tmp_path: Path) -> None:
        data = bytearray(SIZE)
        data[:16] = HEADER
        data[128:512] = b"\x07" * 384
        data[928] = 7
        data[960:992] = b"\xaa" * 32
        data[1024:1028] = bytes((1, 0, 2, 1))
        (tmp_path / "x.sig").write_bytes(data)
        found = read_signature(tmp_path / "x.sig")
        assert found.mr_enclave == b"\xaa" * 32
        assert found.mr_signer == hashlib.sha256(b"\x07" * 384).digest()
        assert (found.isv_prod_id, found.isv_svn, found.debug) == (1, 258, True)

    @pytest.mark.parametrize("data", [b"", bytes(SIZE), HEADER + bytes(SIZE)])
    def test_what_is_none(self, tmp_path: Path, data: bytes) -> None:
        (tmp_path / "x.sig").write_bytes(data)
        with pytest.raises(SignatureError):
            read_signature(tmp_path / "x.sig")


class TestCommand:
    @pytest.fixture(autouse=True)
    def _elsewhere(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("PATH", "/usr/bin:/bin")

    def run(self, *arguments: str) -> int:
        return cli.main(["gramine", *arguments, "--state-dir", "state"])

    def test_the_whole_way_without_gramine(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run("manifest") == os.EX_OK
        said = capsys.readouterr()
        assert "files hash:" in said.out
        assert "MiB; Gramine hashes each at the start" in said.out
        assert "Gramine is not installed here" in said.err
        assert self.run("measure") == os.EX_OK
        assert "MRENCLAVE: " in capsys.readouterr().out
        (tmp_path / "state" / "gramine" / "root" / "enclave-os" / "python").write_bytes(b"")
        assert self.run("measure") == os.EX_DATAERR
        assert "not what its list says" in capsys.readouterr().err

    def test_signing_needs_a_key_and_a_signer(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run("sign") == os.EX_CONFIG
        assert "gramine.key_file names no key" in capsys.readouterr().err
        assert self.run("sign", "--new-key", "signer.pem") == os.EX_OK
        assert (tmp_path / "signer.pem").stat().st_mode & 0o777 == 0o600
        assert self.run("sign", "--new-key", "signer.pem") == os.EX_CANTCREAT
        assert "nothing is overwritten" in capsys.readouterr().err

    @pytest.fixture
    def small(self, tmp_path: Path) -> Image:
        """An image of one module, where the command looks for it."""
        image = Image(tmp_path / "state" / "gramine")
        modules = {"os": Path(os.__file__)}
        make_image(image, Trace(modules, frozenset(), mapped=(), executable=(), opened=()), {})
        image.manifest.write_text("sgx.debug = false\n")
        return image

    def test_the_signer_measures_an_image_before_and_after_it_is_signed(
        self, small: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        signer = tmp_path / "bin" / "gramine-sgx-sign"
        signer.parent.mkdir()
        signer.write_text(STAND_IN.format(python=sys.executable, size=SIZE, header=HEADER.hex()))
        signer.chmod(0o755)
        monkeypatch.setenv("PATH", f"{signer.parent}:/usr/bin:/bin")
        expected = hashlib.sha256(small.manifest.read_bytes()).hexdigest()
        assert self.run("measure") == os.EX_OK
        said = capsys.readouterr().out
        assert f"MRENCLAVE:   {expected} (not signed yet)" in said
        assert f"files hash:  {read_image(small).sha256}" in said
        assert "noise" not in said
        assert not small.signature.exists(), "a measurement signs nothing"
        assert self.run("sign", "--new-key", "signer.pem") == os.EX_OK
        with_key = ("--set", f"gramine.key_file={tmp_path / 'signer.pem'}")
        assert self.run("sign", *with_key) == os.EX_OK
        assert f"MRENCLAVE:   {expected} (signed)" in capsys.readouterr().out
        assert small.missing("sgx") is None
        (signer.parent / "broken").touch()
        small.signature.unlink()
        assert self.run("sign", *with_key) == os.EX_SOFTWARE
        assert self.run("measure") == os.EX_SOFTWARE
        assert "gramine-sgx-sign ended with exit code 3" in capsys.readouterr().err

    def test_gramines_own_signer_says_the_same_of_the_same_files(
        self, small: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Two images of one content in two places have one MRENCLAVE."""
        signer = shutil.which("gramine-sgx-sign", path=PATH)
        gramine = find_gramine(PATH)
        if signer is None or gramine is None:
            pytest.skip(f"gramine-sgx-sign and gramine-direct are not on the path, so nothing was measured: {INSTALL}")
        monkeypatch.setenv("PATH", PATH)
        elsewhere = Image(tmp_path / "elsewhere" / "image")
        modules = {"os": Path(os.__file__)}
        make_image(elsewhere, Trace(modules, frozenset(), mapped=(), executable=(), opened=()), {})
        said = []
        for image in (small, elsewhere):
            image.manifest.write_text(render(check({}), read_image(image), gramine))
            assert self.run("measure", "--set", f"gramine.image={image.folder}") == os.EX_OK
            lines = capsys.readouterr().out.splitlines()
            said.append([line for line in lines if line.startswith(("MRENCLAVE", "files hash"))])
        assert said[0] == said[1]
        assert re.fullmatch(r"MRENCLAVE: +[0-9a-f]{64} \(not signed yet\)", said[0][1])

    def test_nothing_to_measure(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run("measure") == os.EX_DATAERR
        assert "there is no enclave image" in capsys.readouterr().err

    def test_an_enclave_that_is_too_small_is_refused_before_anything_is_run(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.run("manifest", "--set", "gramine.enclave_size=256MiB") == os.EX_CONFIG
        said = capsys.readouterr()
        assert "gramine.enclave_size: 256 MiB are less than" in said.err
        assert "running the server" not in said.out
        assert not (tmp_path / "state").exists()

    def test_a_module_that_is_not_installed(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run("manifest", "--set", "modules.enabled=nothing") == os.EX_SOFTWARE
        assert "no module 'nothing' is installed" in capsys.readouterr().err
