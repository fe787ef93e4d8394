"""An authority that makes real certificates, keys and revocation lists in a test's directory."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = timedelta(days=1)
_CA_USAGE = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


class Authority:
    """Signs certificates; its own is in `file`."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        self.directory = directory
        self.file = directory / f"{name}.pem"
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._revoked: list[int] = []
        builder = self._builder(self._name, self._key).add_extension(x509.BasicConstraints(True, 0), True)
        builder = builder.add_extension(_CA_USAGE, True)
        self._certificate = builder.sign(self._key, hashes.SHA256())
        self.file.write_bytes(self._certificate.public_bytes(Encoding.PEM))

    def server(self, name: str = "server") -> tuple[Path, Path]:
        """Certificate and key of a server at 127.0.0.1 and localhost."""
        names = [x509.DNSName("localhost"), x509.IPAddress(IPv4Address("127.0.0.1"))]
        return self._issue(name, "server", names, ExtendedKeyUsageOID.SERVER_AUTH)

    def client(self, name: str, *alternatives: x509.GeneralName) -> tuple[Path, Path]:
        """Certificate and key of a client with this common name."""
        return self._issue(name, name, list(alternatives), ExtendedKeyUsageOID.CLIENT_AUTH)

    def revocation_list(self, *certificates: Path) -> Path:
        """A list of certificates that are not good any more."""
        now = datetime.now(UTC)
        builder = x509.CertificateRevocationListBuilder(self._name, now - DAY, now + 30 * DAY)
        for path in certificates:
            serial = x509.load_pem_x509_certificate(path.read_bytes()).serial_number
            revoked = x509.RevokedCertificateBuilder(serial, now - DAY).build()
            builder = builder.add_revoked_certificate(revoked)
        path = self.directory / "list.crl"
        path.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))
        return path

    def trusting(self, certificate: tuple[Path, Path] | None = None) -> ssl.SSLContext:
        """How a client sees this authority; with a certificate of its own, where it has one."""
        context = ssl.create_default_context(cafile=self.file)
        if certificate is not None:
            context.load_cert_chain(*certificate)
        return context

    def _issue(
        self, file: str, name: str, alternatives: list[x509.GeneralName], usage: x509.ObjectIdentifier
    ) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), False)
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), False)
        certificate = self.directory / f"{file}.pem"
        certificate.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))
        return certificate, write_key(key, self.directory / f"{file}.key")

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(
            self._name, subject, key.public_key(), x509.random_serial_number(), now - DAY, now + 30 * DAY
        )
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        return builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), False)


def write_key(key: ec.EllipticCurvePrivateKey, path: Path, password: bytes | None = None) -> Path:
    """A private key as a PEM file."""
    encryption: KeySerializationEncryption = NoEncryption() if password is None else BestAvailableEncryption(password)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    return path


def serial(path: Path) -> int:
    """The number that tells a certificate from every other of its authority."""
    return x509.load_pem_x509_certificate(path.read_bytes()).serial_number


def serial_of(der: bytes) -> int:
    """The same, as a peer has sent it."""
    return x509.load_der_x509_certificate(der).serial_number
