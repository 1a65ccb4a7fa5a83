"""Keys and certificates as a company has them, made anew: a root, and a signer below it."""

import datetime
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

MAIL = ExtendedKeyUsageOID.EMAIL_PROTECTION
MAKERS = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
}


@dataclass(frozen=True)
class Keys:
    """PEM. chain: the signer's certificate, then the root's."""

    key: bytes
    chain: bytes
    root: bytes

    def write(self, directory: Path) -> tuple[str, str]:
        """The paths of the key and the chain."""
        key, chain = directory / "key.pem", directory / "chain.pem"
        key.write_bytes(self.key)
        chain.write_bytes(self.chain)
        return str(key), str(chain)


def make_keys(
    kind: str = "P-256", usage: x509.ObjectIdentifier | None = MAIL, days: int = 30
) -> Keys:
    """usage: the extended one of the signer's key. days: until its certificate is void."""
    root_key, key = MAKERS["P-256"](), MAKERS[kind]()
    now = datetime.datetime.now(datetime.UTC)

    def certificate(public, name: str, is_root: bool) -> bytes:
        issuer = root_key.public_key()
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(_name("Root"))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=60))
            .not_valid_after(now + datetime.timedelta(days=365 if is_root else days))
            .add_extension(x509.BasicConstraints(is_root, None), True)
            .add_extension(_key_usage(is_root), True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), False)
        )
        if not is_root and usage is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), False)
        return builder.sign(root_key, hashes.SHA256()).public_bytes(Encoding.PEM)

    root = certificate(root_key.public_key(), "Root", True)
    plain = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Keys(plain, certificate(key.public_key(), "Signer", False) + root, root)


def _name(name: str) -> x509.Name:
    pairs = ((NameOID.COMMON_NAME, name), (NameOID.ORGANIZATION_NAME, "Test Company"))
    return x509.Name([x509.NameAttribute(*pair) for pair in pairs])


def _key_usage(is_root: bool) -> x509.KeyUsage:
    names = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    others = dict.fromkeys((*names, "encipher_only", "decipher_only"), False)
    return x509.KeyUsage(
        digital_signature=not is_root, key_cert_sign=is_root, crl_sign=is_root, **others
    )
