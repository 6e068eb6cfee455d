# SPDX-License-Identifier: Apache-2.0
"""The mirror's own authority and certificates: mutual TLS 1.3, each side knows the other by its certificate's name."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from farmd.mirror import tlscontext
from farmd.model.errors import BadRequest, PeerError, Refused

WITNESS = "mirror-witness"
AUTHORITY, CERTIFICATE, KEY = "ca.pem", "node.pem", "node.key"
YEARS = 10


def node_name(node: int) -> str:
    """The name in node `node`'s certificate."""
    return f"mirror-node-{node}"


@dataclass(frozen=True, slots=True)
class Keys:
    """A folder with `ca.pem`, `node.pem` and `node.key`."""

    folder: Path

    def check(self, node: int) -> Keys:
        """Raises BadRequest if one of the files cannot be used, or is not node `node`'s."""
        try:
            self.client()
        except (OSError, ssl.SSLError) as error:
            step = "Make them with `farmctl mirror keygen`"
            raise BadRequest(f"keys in {self.folder}", f"they cannot be used ({error})", step) from error
        names, wanted = self._names(), node_name(node)
        if wanted not in names:
            cause = f"they are for {', '.join(names) or 'nobody'}, and this is {wanted}"
            raise BadRequest(f"keys in {self.folder}", cause, f"Copy the folder node-{node} of `farmctl mirror keygen`")
        return self

    def _names(self) -> list[str]:
        from cryptography import x509

        certificate = x509.load_pem_x509_certificate((self.folder / CERTIFICATE).read_bytes())
        try:
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        except x509.ExtensionNotFound:
            return []
        return names.value.get_values_for_type(x509.DNSName)

    def client(self) -> ssl.SSLContext:
        """For the side that calls; give it the other side's name as `server_hostname`."""
        return tlscontext.client(*self._files())

    def server(self) -> ssl.SSLContext:
        """For the side that is called: the caller must have a certificate of our authority."""
        return tlscontext.server(*self._files())

    def engine(self, peer: int) -> dict[str, str]:
        """As the data path wants them."""
        files = {"certificate": CERTIFICATE, "key": KEY, "authority": AUTHORITY}
        return {what: str(self.folder / file) for what, file in files.items()} | {"peer_name": node_name(peer)}

    def _files(self) -> tuple[Path, Path, Path]:
        return self.folder / CERTIFICATE, self.folder / KEY, self.folder / AUTHORITY


def check_name(tls: ssl.SSLObject | ssl.SSLSocket, wanted: str) -> None:
    """Whether the other side is `wanted`. Raises PeerError."""
    known: Any = (tls.getpeercert() or {}).get("subjectAltName", ())
    names = [value for kind, value in known if kind == "DNS"]
    if wanted not in names:
        cause = f"its certificate is for {', '.join(map(str, names)) or 'nobody'}, not for {wanted}"
        raise PeerError("the peer", cause, "See that each node has its own folder of keys")


def make(folder: Path, name: str) -> list[Path]:
    """A new authority and certificates for both nodes and a witness, a folder each; returns the folders.

    The authority's key is not kept: new certificates mean a new authority. Raises Refused if `folder` exists.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    if folder.exists():
        raise Refused(str(folder), "it exists", "Choose another folder, or remove it")
    owner = ec.generate_private_key(ec.SECP256R1())
    authority = _certificate(f"farmd mirror {name}", None, owner, owner)
    pem = serialization.Encoding.PEM
    made = []
    for who in (node_name(1), node_name(2), WITNESS):
        key = ec.generate_private_key(ec.SECP256R1())
        secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        target = folder / who.removeprefix("mirror-")
        target.mkdir(mode=0o700, parents=True)
        (target / AUTHORITY).write_bytes(authority.public_bytes(pem))
        (target / CERTIFICATE).write_bytes(_certificate(who, authority.subject, key, owner).public_bytes(pem))
        with open(os.open(target / KEY, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
            file.write(secret)
        made.append(target)
    return made


def _certificate(name: str, issuer, key, signer):  # type: ignore[no-untyped-def]
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    usage = x509.KeyUsage(True, False, False, False, False, issuer is None, issuer is None, False, False)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer or subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=365 * YEARS))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=0 if issuer is None else None), True)
        .add_extension(usage, True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False)
    )
    if issuer is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), False)
    return builder.sign(signer, hashes.SHA256())
