"""First boot, open, or refuse: the one place that decides whether a master key may be made.

What the host says it has (its word), and what the enclave does. A new master key is made in the first row only, so that
no loss, damage or lie ends in an empty enclave that looks like a healthy one (threat-model.md KV5):

    sealed configuration   store    what happens
    none                   none     first boot: a new master key, with the policy of this configuration
    none                   there    refused: something is lost that the store needs
    opens                  any      its policy must be this configuration's, or the one that a manager accepted;
                                    its number of ranges must be this configuration's
    does not open          any      refused: damage, another measurement's, or another platform key, and which
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Protocol

from enclave_os.errors import ConfigError, SealBroken
from enclave_os.sealing import blob, sealed_config
from enclave_os.sealing.sealed_config import SealedConfig
from enclave_os.wire.policy import differences, owner_key_of, read_policy

FOLDER: Final = "<state folder>/sealed/<measurement>"


class Platform(Protocol):
    """Who we are to the processor; `runtime.beginning` has it from the attester."""

    @property
    def measurement(self) -> bytes:
        """MRENCLAVE, 32 bytes."""

    @property
    def cpu_svn(self) -> bytes:
        """The processor's security version, 16 bytes: other microcode, another one, and then another key."""

    def sealing_key(self) -> bytes:
        """32 bytes that only this measurement gets, on this machine with this microcode."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the host alleges to have for our measurement.

    Attributes:
        data: the sealed configuration, None for none.
        store_exists: there is a key-value store.
    """

    data: bytes | None
    store_exists: bool


@dataclass(frozen=True, slots=True)
class Opening:
    """What an opening came to.

    Attributes:
        config: already in its new boot, not sealed yet.
        first_boot: the master key was made now.
        took_over: an accepted policy came into force.
    """

    config: SealedConfig
    first_boot: bool
    took_over: bool


def open_sealed(loaded: Loaded, platform: Platform, policy: bytes, ranges: int = 1) -> Opening:
    """Decide by the table above.

    Args:
        policy: of the configuration that this start was given (`wire.policy.policy_of`).
        ranges: parts of the key-value store, by that configuration.
    Raises:
        SealBroken: refused; the text says what the operator can do.
        ConfigError: the sealed policy, or number of ranges, is another than the configuration's.
    """
    if loaded.data is None:
        return _first_boot(loaded, policy, ranges)
    config = open_blob(loaded.data, platform)
    config, took_over = under_policy(config, policy)
    check_ranges(config, ranges)
    return Opening(config.booted(), first_boot=False, took_over=took_over)


def open_blob(data: bytes, platform: Platform) -> SealedConfig:
    """Open what the platform sealed. Raises: SealBroken: refused; the text says what the operator can do."""
    try:
        parsed = blob.parse(data)
    except SealBroken as error:
        raise SealBroken(_refusal(error, None)) from error
    try:
        content = blob.open_with_platform(parsed, _key_of(platform))
        return _decode(parsed, content)
    except SealBroken as error:
        raise SealBroken(_refusal(error, blob.owner_wrap(parsed))) from error


def seal_config(config: SealedConfig, platform: Platform) -> bytes:
    """The blob of `config` for this platform, with the second wrap that its policy names."""
    return blob.seal(
        sealed_config.encode(config),
        platform=_key_of(platform),
        owner_key=owner_key_of(config.policy),
        signer=blob.signing_key(config.master_key),
    )


def open_granted(data: bytes, data_key: bytes, signature: bytes, policy: bytes) -> SealedConfig:
    """Open what the platform's key does not, by the owner's leave; in its next boot, not sealed yet.

    The owner has made sure that this blob is a true one, which nothing in here can tell, and signed that. The owner is
    the one that the sealed policy names: somebody else's blob with a policy of his own has another owner, which the
    leaf `seal.second_wrap` says from then on.

    Args:
        data: as the host has it. data_key, signature: as the owner brought them.
        policy: of the configuration that this start was given.
    Raises:
        SealBroken: not this blob's key, not the owner's signature, or not whole.
        ConfigError: the sealed policy is another than the configuration's.
    """
    parsed = blob.parse(data)
    config = _decode(parsed, blob.open_with_data_key(parsed, data_key))
    owner_key = owner_key_of(config.policy)
    if owner_key is None:
        raise SealBroken("its policy has no owner, so nobody may bring its data key")
    blob.check_grant(parsed, owner_key, signature)
    config, _ = under_policy(config, policy)
    return replace(config.booted(), recoveries=config.recoveries + 1)


def _decode(parsed: blob.Blob, content: bytes) -> SealedConfig:
    """The content, by a blob that its own master key signed. Raises: SealBroken."""
    config = sealed_config.decode(content)
    blob.check_signer(parsed, config.master_key)
    return config


def under_policy(config: SealedConfig, policy: bytes) -> tuple[SealedConfig, bool]:
    """Hold a configuration's policy against the sealed one; (content, whether an accepted policy was taken over).

    Raises: ConfigError: they differ, and no manager accepted it; one line for each difference, and what to run.
    """
    if policy == config.policy:
        return config, False
    if policy == config.next_policy:
        return replace(config, policy=policy, next_policy=None, policy_changes=config.policy_changes + 1), True
    raise differing(
        "what is sealed as policy rules, and this configuration differs from it:",
        config.policy, policy, _what_to_run(config),
    )  # fmt: skip


def check_ranges(config: SealedConfig, ranges: int) -> None:
    """Hold a configuration's number of ranges against the sealed one. Raises: ConfigError: they differ."""
    sealed = len(config.kv_states)
    if ranges != sealed:
        raise ConfigError(
            f"the store has {sealed} {'range' if sealed == 1 else 'ranges'}, and this configuration says kv.ranges = "
            f"{ranges}: where each entry lies, and its keys, follow from that number, so it stays what it was at the "
            f"first start.\nwrite kv.ranges = {sealed}, or start with another --state-dir for an empty enclave (the "
            "former state stays where it is)"
        )


def differing(heading: str, policy: bytes, other: bytes, advice: str = "") -> ConfigError:
    """The error for a configuration whose policy is `other` where `policy` rules: one line for each difference."""
    lines = [heading, *(str(difference) for difference in differences(policy, other)), advice]
    return ConfigError("\n".join(line for line in lines if line))


def accept_policy(config: SealedConfig, policy: bytes) -> SealedConfig:
    """Let the next start have `policy`: the caller holds a manager's token under the sealed issuer.

    Raises: PolicyError: not a policy. ConfigError: its owner's key cannot be used.
    """
    _check_owner_key(policy)
    return replace(config, next_policy=None if policy == config.policy else policy)


def _first_boot(loaded: Loaded, policy: bytes, ranges: int) -> Opening:
    if loaded.store_exists:
        raise SealBroken(
            "the sealed configuration is missing, but the key-value store of this measurement exists: its keys are in "
            f"what is missing.\nput {FOLDER}/config.sealed back, or start with another --state-dir for an empty "
            "enclave; nothing was changed"
        )
    _check_owner_key(policy)  # before a master key exists that could not be sealed
    return Opening(sealed_config.first(policy, ranges), first_boot=True, took_over=False)


def _check_owner_key(policy: bytes) -> None:
    owner_key = owner_key_of(policy)
    if owner_key is not None:
        blob.load_owner_key(owner_key)


def _key_of(platform: Platform) -> blob.PlatformKey:
    return blob.PlatformKey(platform.measurement, platform.cpu_svn, platform.sealing_key())


def _refusal(reason: SealBroken, second_wrap: blob.Wrap | None) -> str:
    """The whole text: what is wrong, what brings the data back, what was done. `--recover` reads its first line."""
    lines = [f"the sealed configuration does not open: {reason}."]
    if isinstance(reason, blob.OtherPlatformKey):
        if reason.microcode:
            lines.append(
                "the sealing key contains that version, so a microcode update changes it; the file may be whole"
            )
        if second_wrap is not None:
            lines.append(
                f"it has a second wrap, for the owner's key {second_wrap.key_id.hex()[:16]}..., which still opens it: "
                "enclave-os seal recover --help"
            )
        else:
            lines.append("it has no second wrap, so enclave-os seal recover cannot help here")
        lines.append(
            "where an enclave still opens it, on the former microcode or the former machine, that one can give it to "
            "this one: enclave-os seal import --help"
        )
    elif second_wrap is not None:
        lines.append(
            f"it has a second wrap, for the owner's key {second_wrap.key_id.hex()[:16]}...: if the file is whole, that "
            "key opens it: enclave-os seal recover --help"
        )
    lines.append(
        f"put an undamaged {FOLDER}/config.sealed back, or start with another --state-dir for an empty enclave; "
        "nothing was changed, and no new key is made in its place"
    )
    return "\n".join(lines)


def _what_to_run(config: SealedConfig) -> str:
    if read_policy(config.policy)["issuers"]:
        return (
            "start with the former configuration, then let a manager accept the new one: "
            "enclave-os config accept --config NEW.toml --url https://... --token FILE; then restart with it"
        )
    return (
        "no token issuer is sealed, so nobody can accept this: start with the former configuration, or with another "
        "--state-dir for an empty enclave (the former state stays where it is)"
    )
