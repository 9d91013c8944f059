"""A simulated platform in the hands of a test: it can sign what no honest platform would say."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

import enclave_os_host.simulated_platform as host
from enclave_os.evidence.collateral import Collateral
from enclave_os.evidence.quote import ReportBody, encode_body, encode_header, encode_quote, parse_quote
from enclave_os.ratls.attester import SimulatedAttester, SimulatedIdentity
from enclave_os_host.certificates import builder, name

MEASUREMENT = hashlib.sha256(b"some code").digest()
SIGNER = hashlib.sha256(b"some signer").digest()
IDENTITY = SimulatedIdentity(mr_signer=SIGNER, isv_prod_id=3, isv_svn=7)
REPORT_DATA = bytes(range(64))


class Forge:
    """One platform, its attester, and the keys behind it.

    Args: folder: does not exist yet.
    """

    def __init__(self, folder: Path, measurement: bytes = MEASUREMENT) -> None:
        self.folder = folder
        host.open_simulated_platform(folder)
        self.attester = SimulatedAttester("simulated", folder, IDENTITY, measurement)
        self.platform = json.loads((folder / host.PLATFORM_FILE).read_text())
        self.collateral = Collateral.from_json((folder / host.COLLATERAL_FILE).read_text())
        self.root = x509.load_pem_x509_certificate((folder / host.ROOT_FILE).read_bytes())
        self.root_der = self.root.public_bytes(serialization.Encoding.DER)
        self.pck, self.pck_ca, _ = x509.load_pem_x509_certificates(self.platform["pck_chain_pem"].encode())
        first, second, _ = (self.folder / host.ROOT_KEY_FILE).read_bytes().split(b"-----END PRIVATE KEY-----\n")
        self.root_key, self.pck_ca_key = (self._key(part + b"-----END PRIVATE KEY-----\n") for part in (first, second))
        self.attestation_key = self._key(self.platform["attestation_key_pem"].encode())

    @staticmethod
    def _key(pem: bytes) -> ec.EllipticCurvePrivateKey:
        key = serialization.load_pem_private_key(pem, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return key

    def quote(self, report_data: bytes = REPORT_DATA, **changes: Any) -> bytes:
        """A well-signed quote whose report says what `changes` say."""
        honest = parse_quote(self.attester.quote(report_data))
        body: ReportBody = dataclasses.replace(honest.body, **changes)
        signed = encode_header(honest.header) + encode_body(body)
        return encode_quote(
            signed,
            host._sign(self.attestation_key, signed),
            attestation_key=honest.attestation_key,
            qe_report=bytes.fromhex(self.platform["qe_report"]),
            qe_report_signature=honest.qe_report_signature,
            qe_auth_data=honest.qe_auth_data,
            cert_data=honest.cert_data,
        )

    def restated(
        self,
        tcb_info: Callable[[dict[str, Any]], object] = lambda _: None,
        qe_identity: Callable[[dict[str, Any]], object] = lambda _: None,
    ) -> Collateral:
        """Collateral in which Intel's stand-in says something else of the platform, well signed."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.UTC)
        signer = builder(
            name(host.TCB_SIGNER_NAME), key.public_key(), name(host.ROOT_NAME), self.root_key, now, ca=False
        ).sign(self.root_key, hashes.SHA256())
        pem = serialization.Encoding.PEM
        chain = (signer.public_bytes(pem) + self.root.public_bytes(pem)).decode()
        texts = []
        for text, change in ((self.collateral.tcb_info, tcb_info), (self.collateral.qe_identity, qe_identity)):
            document = json.loads(text)
            change(document)
            texts.append(host._text(document))
        return dataclasses.replace(
            self.collateral,
            tcb_info_issuer_chain=chain,
            tcb_info=texts[0],
            tcb_info_signature=host._sign(key, texts[0].encode()),
            qe_identity_issuer_chain=chain,
            qe_identity=texts[1],
            qe_identity_signature=host._sign(key, texts[1].encode()),
        )

    def with_status(self, status: str, *advisories: str) -> Collateral:
        """The platform has this TCB status."""

        def change(document: dict[str, Any]) -> None:
            document["tcbLevels"][0]["tcbStatus"] = status
            document["tcbLevels"][0]["advisoryIDs"] = list(advisories)

        return self.restated(change)

    def revoking_the_pck(self) -> Collateral:
        """The PCK certificate is on the PCK CA's CRL."""
        now = datetime.datetime.now(datetime.UTC)
        revoked = x509.RevokedCertificateBuilder().serial_number(self.pck.serial_number).revocation_date(now).build()
        crl = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.pck_ca.subject)
            .last_update(now)
            .next_update(now + datetime.timedelta(days=30))
            .add_revoked_certificate(revoked)
            .add_extension(x509.CRLNumber(2**40), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.pck_ca_key.public_key()), critical=False
            )
            .sign(self.pck_ca_key, hashes.SHA256())
        )
        return dataclasses.replace(self.collateral, pck_crl=crl.public_bytes(serialization.Encoding.DER))
