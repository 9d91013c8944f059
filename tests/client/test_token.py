"""Development keys and tokens: ES256 and nothing else, files that only their owner reads, honest words on `show`."""

from __future__ import annotations

import stat
import time
import tomllib
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from enclave_os.wire.settings import check
from enclave_os_client import token

NOW = 1_800_000_000
PAIR = token.generate_key()


def issue(**changes: object) -> str:
    arguments = {"roles": ["manager"], "subject": "developer", "now": NOW} | changes
    return token.issue(PAIR.private_pem, **arguments)  # type: ignore[arg-type]


def pem_of(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, password: bytes | None = None) -> str:
    protection = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection).decode()


def test_a_token_says_what_was_asked() -> None:
    text = issue(roles=["manager", "monitoring"], lifetime=60)
    claims = jwt.decode(
        text,
        PAIR.public_pem,
        algorithms=["ES256"],
        audience="enclave-os",
        options={"verify_exp": False, "verify_nbf": False, "verify_iat": False},
    )
    assert claims["roles"] == ["manager", "monitoring"]
    assert (claims["iss"], claims["sub"]) == ("enclave-os-development", "developer")
    assert (claims["iat"], claims["nbf"], claims["exp"]) == (NOW, NOW, NOW + 60)
    assert jwt.get_unverified_header(text)["alg"] == "ES256"


def test_no_two_tokens_are_the_same() -> None:
    assert token.decode(issue()).claims["jti"] != token.decode(issue()).claims["jti"]


@pytest.mark.parametrize("lifetime", [0, -1, token.LIFETIME_MAX + 1])
def test_a_lifetime_out_of_range(lifetime: int) -> None:
    with pytest.raises(token.TokenError, match="out of range"):
        issue(lifetime=lifetime)


@pytest.mark.parametrize(
    "pem",
    [
        "",
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        PAIR.public_pem,
        pem_of(ec.generate_private_key(ec.SECP384R1())),
        pem_of(rsa.generate_private_key(65537, 2048)),
        pem_of(ec.generate_private_key(ec.SECP256R1()), b"secret"),
    ],
    ids=["empty", "broken", "public", "P-384", "RSA", "encrypted"],
)
def test_keys_that_cannot_sign_es256(pem: str) -> None:
    with pytest.raises(token.TokenError):
        token.issue(pem, roles=["manager"], subject="x", now=NOW)


def test_the_table_to_paste_is_a_right_configuration() -> None:
    table = token.issuer_table(PAIR.public_pem, 'https://"issuer".example', "aud\\ience")
    settings = check(tomllib.loads(table))
    assert settings.auth.issuers[0].issuer == 'https://"issuer".example'
    assert settings.auth.issuers[0].audience == "aud\\ience"
    serialization.load_pem_public_key(settings.auth.issuers[0].public_key_pem.encode())


def test_the_private_key_is_not_shown() -> None:
    assert "PRIVATE" not in repr(PAIR)


class TestFiles:
    def test_only_the_owner_may_read_the_key(self, tmp_path: Path) -> None:
        token.write_private_key(tmp_path / "k.pem", PAIR.private_pem)
        assert stat.S_IMODE((tmp_path / "k.pem").stat().st_mode) == 0o600
        assert token.read_key_file(tmp_path / "k.pem") == PAIR.private_pem

    def test_nothing_is_overwritten(self, tmp_path: Path) -> None:
        (tmp_path / "k.pem").write_text("mine", encoding="ascii")
        with pytest.raises(FileExistsError):
            token.write_private_key(tmp_path / "k.pem", PAIR.private_pem)
        assert (tmp_path / "k.pem").read_text(encoding="ascii") == "mine"

    def test_a_link_does_not_lead_the_key_elsewhere(self, tmp_path: Path) -> None:
        (tmp_path / "k.pem").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(FileExistsError):
            token.write_private_key(tmp_path / "k.pem", PAIR.private_pem)
        assert not (tmp_path / "elsewhere").exists()

    @pytest.mark.parametrize("data", [b"\xff", b"A" * (token.KEY_FILE_SIZE_MAX + 1)], ids=["binary", "big"])
    def test_a_file_that_is_no_key(self, tmp_path: Path, data: bytes) -> None:
        (tmp_path / "k.pem").write_bytes(data)
        with pytest.raises(token.TokenError, match="not a PEM file"):
            token.read_key_file(tmp_path / "k.pem")


class TestDecode:
    def test_without_a_key_nothing_is_verified(self) -> None:
        decoded = token.decode(issue())
        assert not decoded.verified
        assert decoded.claims["sub"] == "developer"

    def test_with_the_key(self) -> None:
        text = issue(now=int(time.time()))
        assert token.decode(text, public_pem=PAIR.public_pem).verified
        assert token.decode(text, public_pem=PAIR.public_pem, audience="enclave-os").verified
        with pytest.raises(token.TokenError, match=r"[Aa]udience"):
            token.decode(text, public_pem=PAIR.public_pem, audience="other")
        with pytest.raises(token.TokenError, match=r"[Ss]ignature"):
            token.decode(text, public_pem=token.generate_key().public_pem)

    def test_an_old_token(self) -> None:
        with pytest.raises(token.TokenError, match="expired"):
            token.decode(issue(now=1_600_000_000), public_pem=PAIR.public_pem)

    def test_another_algorithm_is_refused_whatever_the_header_says(self) -> None:
        """RFC 8725 2.1: the public key as an HMAC secret, and `none`."""
        claims = {"iss": "x", "aud": "y", "exp": 4_000_000_000}
        for text in (
            jwt.encode(claims, "a secret of at least thirty-two bytes", algorithm="HS256"),
            jwt.encode(claims, None, algorithm="none"),  # type: ignore[arg-type]
        ):
            with pytest.raises(token.TokenError):
                token.decode(text, public_pem=PAIR.public_pem)

    @pytest.mark.parametrize("text", ["", "abc", "a.b.c", "ä.ä.ä", "A" * (token.TOKEN_SIZE_MAX + 1)])
    def test_what_is_no_token(self, text: str) -> None:
        with pytest.raises(token.TokenError):
            token.decode(text)


class TestPublicHalf:
    def test_of_both_halves(self) -> None:
        assert token.public_half(PAIR.private_pem) == PAIR.public_pem
        assert token.public_half(PAIR.public_pem) == PAIR.public_pem

    @pytest.mark.parametrize("pem", ["", "PRIVATE KEY", pem_of(ec.generate_private_key(ec.SECP384R1()))])
    def test_of_nothing(self, pem: str) -> None:
        with pytest.raises(token.TokenError):
            token.public_half(pem)
