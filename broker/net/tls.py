"""TLS: certificates that can be replaced while the listener runs, and the layer around one connection's records.

The rules:

1. A context holds what was loaded together: certificate, key, client authorities, revocation list. A reload makes a
   new one and, only where all of it is good, puts it in the place of the old one. Connections keep the one that they
   began with.
2. Files that change are loaded once they have stopped changing: certificate and key are seldom written as one.
3. A client's certificate is asked for where there are authorities to check it, and then a bad one ends the connection.
   Only a certificate that was checked gives an identity.
4. The layer keeps its records in memory BIOs: no buffer waits in each idle connection, and what came with a PROXY
   protocol header goes the same way as what comes later.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

_RECORDS: Final = 64 << 10
"""Bytes asked for at a time; OpenSSL gives those of one record."""
_VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}

Stamp = tuple[tuple[int, int, int], ...]
"""Inode, size and time of change of each file, to see that one has changed."""


class TLSError(Exception):
    """A file can't be used; the message says which, why, and what it should be."""


@dataclass(frozen=True, slots=True)
class TLSFiles:
    """What a listener's TLS is made of. All files are PEM.

    `identity`: which part of a client's certificate says who it is; empty: none.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None
    require_client_certificate: bool = False
    crl: Path | None = None
    minimum_version: Literal["1.2", "1.3"] = "1.2"
    identity: Literal["", "cn", "san"] = ""

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that there are."""
        return tuple(path for path in (self.certificate, self.key, self.client_ca, self.crl) if path is not None)


class Certificates:
    """The context that new connections get, and whether its files have changed.

    Raises:
        TLSError: a file can't be used.
    """

    def __init__(self, files: TLSFiles) -> None:
        self.files = files
        self._loaded = self._seen = _stamp(files.paths)
        self.context = load(files)

    def changed(self) -> bool:
        """Whether files have changed since they were loaded, and not since the last question.

        The answer is yes once for each change, whether or not what is loaded then can be used.
        """
        seen, self._seen = self._seen, _stamp(self.files.paths)
        if self._seen == self._loaded or self._seen != seen:
            return False
        self._loaded = self._seen
        return True


def load(files: TLSFiles) -> ssl.SSLContext:
    """A context of these files.

    Raises:
        TLSError: a file can't be used.
    """
    for path in files.paths:
        _check_readable(path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[files.minimum_version]
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    try:
        _load_into(context, files)
    except OSError as error:  # a file has gone since it was looked at
        raise TLSError(f"{error.filename or files.certificate}: cannot be read: {error.strerror}") from None
    return context


def _load_into(context: ssl.SSLContext, files: TLSFiles) -> None:
    _load_pair(context, files)
    if files.client_ca is not None:
        _load_authorities(context, files.client_ca, "a PEM file of certificates")
        context.verify_mode = ssl.CERT_REQUIRED if files.require_client_certificate else ssl.CERT_OPTIONAL
    if files.crl is not None:
        _load_authorities(context, files.crl, "a PEM file of a certificate revocation list")
        if not context.cert_store_stats()["crl"]:
            raise TLSError(f"{files.crl}: there is no certificate revocation list in it")
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF


def _check_readable(path: Path) -> None:
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise TLSError(f"{path}: cannot be read: {error.strerror}") from None


def _load_pair(context: ssl.SSLContext, files: TLSFiles) -> None:
    def no_password() -> str:
        raise TLSError(f"{files.key}: it is encrypted; a node takes a key without a password, mode 0600")

    try:
        context.load_cert_chain(files.certificate, files.key, no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise TLSError(f"{files.key}: it is not the key of the certificate in {files.certificate}") from None
        bad, what = (files.key, "private key")
        if not _has_certificate(files.certificate):
            bad, what = (files.certificate, "certificate")
        reason = f" ({error.reason.lower().replace('_', ' ')})" if error.reason else ""
        raise TLSError(f"{bad}: it is not a PEM file of a {what} that can be used{reason}") from None


def _has_certificate(path: Path) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(path)
    except ssl.SSLError:
        return False
    return True


def _load_authorities(context: ssl.SSLContext, path: Path, what: str) -> None:
    try:
        context.load_verify_locations(path)
    except ssl.SSLError:
        raise TLSError(f"{path}: it is not {what}") from None


def _stamp(paths: Iterable[Path]) -> Stamp:
    stamps: list[tuple[int, int, int]] = []
    for path in paths:
        try:
            found = path.stat()
        except OSError:
            stamps.append((0, 0, 0))
        else:
            stamps.append((found.st_ino, found.st_size, found.st_mtime_ns))
    return tuple(stamps)


class TLSLayer:
    """One TLS connection, seen from the server. `identity` is known once the first bytes have come through."""

    STRETCH = 64 << 10

    __slots__ = ("_established", "_from_peer", "_part", "_tls", "_to_peer", "ended", "error", "identity", "work")

    def __init__(self, certificates: Certificates) -> None:
        self.ended = False
        self.error = ""
        self.identity = ""
        self.work = 1
        self._part = certificates.files.identity
        self._established = False
        self._from_peer = ssl.MemoryBIO()
        self._to_peer = ssl.MemoryBIO()
        self._tls = certificates.context.wrap_bio(self._from_peer, self._to_peer, server_side=True)

    @property
    def unfinished(self) -> int:
        """Bytes of a record that is not whole: never many."""
        return self._from_peer.pending

    def receive(self, data: bytes) -> bytes:
        """What the records carried."""
        if self.error or self.ended:
            return b""
        self._from_peer.write(data)
        read: list[bytes] = []
        try:
            if not self._established:
                self._tls.do_handshake()
                self._established = True
                if self._part:
                    self.identity = identity(self._tls.getpeercert(), self._part)
            while chunk := self._tls.read(_RECORDS):
                read.append(chunk)
            self.ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True
        except ssl.SSLError as error:
            self.error = f"TLS: {_words(error)}"
        return read[0] if len(read) == 1 else b"".join(read)

    def send(self, data: bytes) -> bytes:
        """Records."""
        if self._established and not self.error:
            self._tls.write(data)
        return self._to_peer.read()

    def take(self) -> bytes:
        """Answers to the handshake, and alerts."""
        return self._to_peer.read() if self._to_peer.pending else b""

    def close(self) -> bytes:
        """An alert that says that nothing more comes."""
        if self._established and not self.error:
            with suppress(ssl.SSLError):  # it wants the peer's answer, for which nobody waits
                self._tls.unwrap()
        return self._to_peer.read()


def identity(certificate: object, part: str) -> str:
    """Who a certificate, as `getpeercert` gives it, says that its owner is; empty where it does not.

    `cn`: the first common name. `san`: the first DNS name, URI or mail address.
    """
    if not isinstance(certificate, dict):
        return ""
    if part == "cn":
        pairs = [pair for names in certificate.get("subject", ()) for pair in names]
        kinds: tuple[str, ...] = ("commonName",)
    else:
        pairs = list(certificate.get("subjectAltName", ()))
        kinds = ("DNS", "URI", "email")
    return next((str(value) for kind, value in pairs if kind in kinds), "")


def _words(error: ssl.SSLError) -> str:
    """Such as `http request`, or why a certificate is not good."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the client's certificate is not good: {error.verify_message}"
    if error.reason is None:
        return "the handshake failed"
    return error.reason.lower().replace("_", " ")
