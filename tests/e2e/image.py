"""The enclave image for servers under test, made by the command as an operator makes it."""

from __future__ import annotations

import subprocess
from pathlib import Path

MODULES = ("helloworld", "trial", "kv", "vault", "wasm")
SECONDS = 120.0


def make_image(python: Path, folder: Path, more: str = "") -> Path:
    """Make an image with the modules of these tests; returns its folder."""
    config = folder / "image.toml"
    image = folder / "image"
    enabled = ", ".join(f'"{name}"' for name in MODULES)
    config.write_text(
        f'[server]\nstate_dir = "{folder / "state"}"\n[modules]\nenabled = [{enabled}]\n'
        f'[gramine]\nimage = "{image}"\nenclave_size = "4GiB"\n{more}'
    )
    command = [str(python), "-I", "-m", "enclave_os_host", "gramine", "manifest", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    return image
