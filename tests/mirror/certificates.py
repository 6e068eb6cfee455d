# SPDX-License-Identifier: Apache-2.0
"""A farm's own authority and a certificate for each node, made with `cryptography`, for tests and benches."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _certificate(
    subject: str, key: ec.EllipticCurvePrivateKey, issuer: str, signer: ec.EllipticCurvePrivateKey, authority: bool
) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(_name(subject)).issuer_name(_name(issuer))
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1))
    builder = builder.add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(subject)]), critical=False)
    return builder.sign(signer, hashes.SHA256())


def make_certificates(folder: Path, *nodes: str) -> dict[str, dict[str, str]]:
    """For each node the paths `certificate`, `key` and `authority`."""
    folder.mkdir(exist_ok=True)
    signer = ec.generate_private_key(ec.SECP256R1())
    root = _certificate("authority", signer, "authority", signer, authority=True)
    (folder / "authority.pem").write_bytes(root.public_bytes(serialization.Encoding.PEM))
    made = {}
    for node in nodes:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(node, key, "authority", signer, authority=False)
        (folder / f"{node}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (folder / f"{node}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        made[node] = {
            "certificate": str(folder / f"{node}.pem"),
            "key": str(folder / f"{node}.key"),
            "authority": str(folder / "authority.pem"),
        }
    return made
