"""Certificates of a run: a private CA signs one for the server and one for each rank.

The CA's key is not stored, so that no further certificate can be signed. A certificate names a role, not a host: the
worker asks for the server's, and a rank's is valid for that rank alone.
"""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fa.utils.files import publish, sync, sync_folder, temporary_folder
from fa.utils.validation import check, check_integer

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

_CA, _CERTIFICATE, _KEY = "ca.pem", "certificate.pem", "key.pem"
_SERVER = "server.fa.invalid"  # names of roles, which no host can have
_WORKER = "worker-{}.fa.invalid"
_SKEW = timedelta(hours=1)  # of the clocks of two hosts
_LONGEST = 36_500  # days


def create_keys(folder: Path, workers: int, days: int = 30) -> list[Path]:
    """Create the keys of a run: all of them, or no folder.

    Args:
        folder: New folder.
        workers: Number of workers p.
        days: Number of days for which the certificates are valid.

    Returns:
        The folders to distribute: of the server, and of each rank.

    Raises:
        ValueError: The folder exists, a number is less than 1, or there are more than 36,500 days.
    """
    check_integer("workers", workers, 1)
    check_integer("days", days, 1)
    check("days", days, days <= _LONGEST, f"at most {_LONGEST}")
    check("folder", str(folder), not folder.exists(), "a folder that does not exist yet")
    authority = _Authority(days)
    with temporary_folder(folder.parent) as unfinished:
        unfinished.chmod(0o700)
        authority.write(unfinished / "server", _SERVER, server=True)
        for rank in range(workers):
            authority.write(unfinished / f"worker-{rank}", _WORKER.format(rank))
        sync(unfinished)
        publish(unfinished, folder)
    return [folder / "server", *(folder / f"worker-{rank}" for rank in range(workers))]


class _Authority:
    """A CA whose key exists only in memory."""

    def __init__(self, days: int) -> None:
        from cryptography.hazmat.primitives.asymmetric import ec

        self._key = ec.generate_private_key(ec.SECP256R1())
        self._begin = datetime.now(UTC) - _SKEW
        self._end = self._begin + timedelta(days=days) + _SKEW
        self._certificate = self._sign("fa run CA", self._key.public_key(), _authority_extensions())

    def write(self, folder: Path, name: str, server: bool = False) -> None:
        """Write the CA's certificate, and a key with its certificate."""
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(name, key.public_key(), _role_extensions(name, server))
        pem = serialization.Encoding.PEM
        format, encryption = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        folder.mkdir(mode=0o700)
        (folder / _CA).write_bytes(self._certificate.public_bytes(pem))
        (folder / _CERTIFICATE).write_bytes(certificate.public_bytes(pem))
        (folder / _KEY).touch(mode=0o600)
        (folder / _KEY).write_bytes(key.private_bytes(pem, format, encryption))
        sync_folder(folder)

    def _sign(self, name: str, key: ec.EllipticCurvePublicKey, extensions: list[tuple[Any, bool]]) -> x509.Certificate:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes

        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "fa run CA")])
        builder = x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number(), self._begin, self._end)
        extensions = [*extensions, (x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), False)]
        for extension, critical in [*extensions, (x509.SubjectKeyIdentifier.from_public_key(key), False)]:
            builder = builder.add_extension(extension, critical)
        return builder.sign(self._key, hashes.SHA256())


def _authority_extensions() -> list[tuple[Any, bool]]:
    from cryptography import x509

    usage = dict.fromkeys(_USAGES, False) | {"key_cert_sign": True}
    return [(x509.BasicConstraints(ca=True, path_length=0), True), (x509.KeyUsage(**usage), True)]


def _role_extensions(name: str, server: bool) -> list[tuple[Any, bool]]:
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    usage = dict.fromkeys(_USAGES, False) | {"digital_signature": True}
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
    return [
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (x509.KeyUsage(**usage), True),
        (
            x509.ExtendedKeyUsage([purpose]),
            False,
        ),
        (x509.SubjectAlternativeName([x509.DNSName(name)]), False),
    ]


_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


def server_context(folder: Path) -> ssl.SSLContext:
    """Load the server's keys; only certificates of the same CA are accepted.

    Args:
        folder: Folder that `create_keys` wrote.

    Returns:
        The context of the server's sockets.

    Raises:
        ValueError: The folder does not hold keys.
    """
    return _load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), folder)


def worker_context(folder: Path) -> ssl.SSLContext:
    """Load a worker's keys; only the server's certificate is accepted.

    Args:
        folder: Folder that `create_keys` wrote.

    Returns:
        The context of a worker's socket.

    Raises:
        ValueError: The folder does not hold keys.
    """
    return _load(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), folder)


SERVER_NAME = _SERVER
"""Name in the server's certificate, for `SSLContext.wrap_socket`."""


def _load(context: ssl.SSLContext, folder: Path) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(folder / _CERTIFICATE, folder / _KEY)
        context.load_verify_locations(folder / _CA)
    except OSError as error:  # ssl.SSLError is one
        cure = "`fa keys DIR` writes DIR/server and DIR/worker-R."
        check("keys", str(folder), False, f"a folder with {_CA}, {_CERTIFICATE} and {_KEY}", cure)
        raise AssertionError from error
    return context


def is_of_rank(certificate: dict[str, Any], rank: int) -> bool:
    """Return True if a certificate, as `SSLSocket.getpeercert` returns it, is the one of a rank.

    Args:
        certificate: The peer's certificate.
        rank: Rank of the worker.
    """
    return ("DNS", _WORKER.format(rank)) in certificate.get("subjectAltName", ())
