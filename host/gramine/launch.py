"""Which way the enclave is started here: as the configuration asks, or the best that the machine has."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from enclave_os.wire.setting_table import Settings

from ..launch import GRAMINE_END_SECONDS_MAX, GRAMINE_START_SECONDS_MAX, SIMULATED, How, Launch
from .image import FOLDER, NAME, Image
from .installed import LOADERS, find_gramine, missing

SGX_DEVICE: Final = Path("/dev/sgx_enclave")

READABLE: Final = "this machine can read what it holds"
SIMULATED_LINE: Final = f"the enclave is an ordinary process, and {READABLE}"


class NoEnclave(Exception):
    """The enclave cannot be started the way that was asked for; the text says why and what to do."""


def choose_launch(
    settings: Settings, *, only_gramine: bool = False, search: str | None = None, device: Path = SGX_DEVICE
) -> tuple[Launch, str]:
    """How to start the enclave, and the line that tells people.

    Args:
        only_gramine: where the configuration leaves the choice, direct is better than a plain process.
        search: for Gramine's commands, instead of $PATH; device: the kernel's SGX device.
    Raises: NoEnclave.
    """
    image = image_of(settings)
    asked = settings.server.enclave
    if asked in ("auto", "simulated") and only_gramine:
        asked = "direct" if why_not_sgx(image, search=search, device=device) else "sgx"
    if asked == "auto":
        reason = why_not_sgx(image, search=search, device=device)
        if reason:
            return SIMULATED, f"simulated: {SIMULATED_LINE}. Not sgx: {reason}"
        return _gramine("sgx", image, search), "sgx: under gramine-sgx"
    if asked == "simulated":
        return SIMULATED, f"simulated: no SGX here; {SIMULATED_LINE}"
    how: How = "sgx" if asked == "sgx" else "direct"
    if shutil.which(LOADERS[how], path=search) is None or find_gramine(search) is None:
        raise NoEnclave(missing(how))
    if how == "sgx" and not device.exists():
        raise NoEnclave(f"--enclave sgx needs {device}, which is not here; enclave-os doctor says what is missing")
    if reason := image.missing(how):
        raise NoEnclave(reason)
    direct = f"direct: the enclave is under Gramine without SGX, and {READABLE}"
    return _gramine(how, image, search), direct if how == "direct" else "sgx: under gramine-sgx"


def why_not_sgx(image: Image, *, search: str | None = None, device: Path = SGX_DEVICE) -> str | None:
    """The first thing that an SGX enclave lacks here, in a few words; None: nothing."""
    if not device.exists():
        return f"no {device}"
    if shutil.which(LOADERS["sgx"], path=search) is None or find_gramine(search) is None:
        return "no gramine-sgx on the path"
    return image.missing("sgx")


def image_of(settings: Settings) -> Image:
    """The image that the configuration names."""
    return Image(Path(settings.gramine.image or Path(settings.server.state_dir) / FOLDER))


def _gramine(how: How, image: Image, search: str | None) -> Launch:
    loader = shutil.which(LOADERS[how], path=search)
    # The manifest's paths are relative to the image, so that its measurement does not depend on where that lies.
    command = ("/usr/bin/env", "-C", str(image.folder), str(loader), NAME)
    return Launch(how, command, GRAMINE_START_SECONDS_MAX, GRAMINE_END_SECONDS_MAX)
