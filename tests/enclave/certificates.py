"""A certificate authority for tests, made by `cryptography`, and so by another hand than what is tested."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes

YEAR = datetime.timedelta(days=365)


@dataclass(frozen=True)
class Authority:
    """A CA certificate and its key, in the forms that the tests hand around."""

    certificate: x509.Certificate
    key: CertificateIssuerPrivateKeyTypes

    @classmethod
    def make(
        cls,
        name: str,
        *,
        key: CertificateIssuerPrivateKeyTypes | None = None,
        issuer: Authority | None = None,
        is_ca: bool = True,
        with_key_id: bool = True,
    ) -> Self:
        """A CA of one year and a day, self-signed or under `issuer`."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        assert isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey)
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        yesterday = datetime.datetime.now(tz=datetime.UTC) - datetime.timedelta(days=1)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer.certificate.subject if issuer else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(yesterday)
            .not_valid_after(yesterday + YEAR)
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=not is_ca,
                    content_commitment=False,
                    key_encipherment=False,
                    data_encipherment=False,
                    key_agreement=False,
                    key_cert_sign=is_ca,
                    crl_sign=is_ca,
                    encipher_only=False,
                    decipher_only=False,
                ),
                critical=True,
            )
        )
        if with_key_id:
            builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        if issuer:
            builder = builder.add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
                    issuer.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
                ),
                critical=False,
            )
        return cls(builder.sign(issuer.key if issuer else key, hashes.SHA256()), key)

    @property
    def certificate_der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def certificate_pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_der(self) -> bytes:
        return self._key(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8)

    @property
    def key_pem(self) -> bytes:
        return self._key(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)

    @property
    def key_sec1_pem(self) -> bytes:
        return self._key(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL)

    def _key(self, encoding: serialization.Encoding, form: serialization.PrivateFormat) -> bytes:
        return self.key.private_bytes(encoding, form, serialization.NoEncryption())
