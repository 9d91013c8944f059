"""What modules say of themselves, into the config tree, the certificates and the names that are served."""

from __future__ import annotations

from collections.abc import Iterable

from enclave_os.errors import ConfigError
from enclave_os.modules.api import Module
from enclave_os.ratls.certificate import CertificateStore, hostname_of
from enclave_os.ratls.config_tree import ConfigTree
from enclave_os.ratls.settings_leaves import certificate_leaves
from enclave_os.runtime._ingress import Ingress
from enclave_os.runtime.attestation import Attestation


def take_statements(
    modules: Iterable[Module],
    own_names: Iterable[str],
    *,
    tree: ConfigTree,
    attestation: Attestation,
    certificates: CertificateStore | None,
    ingress: Ingress | None,
) -> None:
    """Ask every module anew, and have what it says attested and served.

    Their extensions and applications are config leaves as well: whatever a certificate says moves the root.

    Args: own_names: the server's, which no application may take.
    Raises: ConfigError: two say the same, or what no certificate can say.
    """
    oids: dict[str, bytes] = {}
    apps: dict[str, dict[str, bytes]] = {}
    own = {name.lower() for name in own_names}
    for module in modules:
        attestation.branch(f"module.{module.name}").replace(module.config_leaves())
        for oid, value in module.custom_oids().items():
            if oid in oids:
                raise ConfigError(f"module {module.name!r}: extension {oid} is another module's")
            oids[oid] = value
        for app in module.app_identities():
            hostname = hostname_of(app.hostname.encode("ascii", "replace"))
            if hostname is None or hostname in apps:
                raise ConfigError(f"module {module.name!r}: {app.hostname!r} is no host name, or another app's")
            if hostname in own:
                raise ConfigError(f"module {module.name!r}: {hostname!r} is the server's own name (tls.names)")
            apps[hostname] = dict(app.oids)
    attestation.set_module_oids(oids)
    if certificates is not None:
        certificates.set_apps(apps)
    tree.update(certificate_leaves(oids, apps))
    if ingress is not None:
        ingress.set_apps(frozenset(apps) or None)
