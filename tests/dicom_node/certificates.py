"""Certificates for tests, made by trustme."""

from __future__ import annotations

import hashlib
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from dicom_node.tls import ClientTls

PAST = datetime(2020, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Identity:
    """A certificate with its key, and the authority that its owner trusts, as files."""

    certificate: Path
    key: Path
    authorities: Path

    @property
    def fingerprint(self) -> str:
        der = ssl.PEM_cert_to_DER_cert(self.certificate.read_text())
        return hashlib.sha256(der).hexdigest()

    @property
    def files(self) -> dict[str, Path]:
        return {"certificate": self.certificate, "key": self.key, "authorities": self.authorities}

    @property
    def client(self) -> ClientTls:
        return ClientTls(**self.files)

    @property
    def for_dcmtk(self) -> list[str]:
        """Options of DCMTK's programs: TLS, shown with this certificate."""
        return ["+tls", str(self.key), str(self.certificate), "+cf", str(self.authorities)]


class Authority:
    """Signs certificates."""

    def __init__(self, folder: Path, authority: trustme.CA | None = None) -> None:
        self._authority = authority or trustme.CA()
        self._folder = folder
        self._count = 0
        self.file = folder / "authority.pem"
        self._authority.cert_pem.write_to_path(self.file)

    def issue(self, name: str = "127.0.0.1", *, expired: bool = False) -> Identity:
        """A certificate for a host."""
        dates = {"not_before": PAST, "not_after": PAST.replace(year=2021)} if expired else {}
        made = self._authority.issue_cert(name, **dates)
        self._count += 1
        identity = Identity(
            certificate=self._folder / f"{self._count}.pem",
            key=self._folder / f"{self._count}.key",
            authorities=self.file,
        )
        identity.certificate.write_bytes(b"".join(pem.bytes() for pem in made.cert_chain_pems))
        made.private_key_pem.write_to_path(identity.key)
        return identity

    def child(self, folder: Path) -> Authority:
        """An authority whose own certificate this one has signed."""
        folder.mkdir()
        return Authority(folder, self._authority.create_child_ca())

    @property
    def private_key(self) -> EllipticCurvePrivateKey:
        return load_pem_private_key(self._authority.private_key_pem.bytes(), None)

    def revoke(
        self,
        *certificates: Path,
        since: datetime | None = None,
        until: datetime | None = None,
        signed_with: EllipticCurvePrivateKey | None = None,
    ) -> bytes:
        """A list (PEM) with these certificates on it, good for a day."""
        mine = x509.load_pem_x509_certificate(self._authority.cert_pem.bytes())
        now = datetime.now(UTC)
        builder = x509.CertificateRevocationListBuilder().issuer_name(mine.subject)
        builder = builder.last_update(since or now - timedelta(hours=1))
        builder = builder.next_update(until or now + timedelta(days=1))
        for file in certificates:
            number = x509.load_pem_x509_certificate(file.read_bytes()).serial_number
            revoked = x509.RevokedCertificateBuilder().serial_number(number).revocation_date(PAST).build()
            builder = builder.add_revoked_certificate(revoked)
        return builder.sign(signed_with or self.private_key, SHA256()).public_bytes(Encoding.PEM)
