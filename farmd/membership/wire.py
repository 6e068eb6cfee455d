# SPDX-License-Identifier: Apache-2.0
"""Messages as datagrams: encrypted, authentic, never accepted twice, never from an earlier session.

Header, 28 bytes, authenticated as associated data, big-endian:

    magic and version 4 | key id 1 | frame 1 | sender 2 | cluster id 4 | boot id 8 | sequence number 8

The rest is AES-256-GCM under a key that HKDF-SHA256 derives for this sender and this incarnation, with 4 zero bytes and
the sequence number as nonce: it never repeats, because an incarnation counts up and a new one has a new key. No disk,
no clock and no random nonce is needed.

A sequence number must be above the last one of the same incarnation, so a copy of a datagram (from a second network, or
from an attacker) is dropped. A new incarnation is believed only after it has answered a challenge: we send it a fresh
nonce, and it sends the nonce back. That costs one round trip at a start and stops the replay of whole old sessions.
Whoever holds a key of the ring can speak for any node.
"""

from __future__ import annotations

import hashlib
import secrets
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from farmd.membership.keys import KeyRing
from farmd.membership.messages import Message, decode, encode
from farmd.membership.packing import WireError
from farmd.model.nodes import BootId, NodeId

MAGIC = b"FMD\x01"
HEADER = struct.Struct(">4sBBHIQQ")
TAG_BYTES = 16
MAX_DATAGRAM = 65_507
CHALLENGE_LIFE_NS = 2_000_000_000
_CHALLENGE = struct.Struct(">HQQ")
_MOST_CIPHERS = 512
_MOST_CHALLENGES = 4


class Frame(IntEnum):
    """What a datagram carries."""

    MESSAGE = 1
    CHALLENGE = 2
    """For (node, boot id): prove that you are alive by returning this nonce."""
    ANSWER = 3


class DropReason(StrEnum):
    """Why a datagram yields no message."""

    SHORT = "short"
    FOREIGN = "foreign"
    """Not our protocol, version or farm."""
    UNKNOWN_SENDER = "unknown-sender"
    UNKNOWN_KEY = "unknown-key"
    FORGED = "forged"
    """It does not decrypt: another key, or somebody changed it."""
    DUPLICATE = "duplicate"
    """Its sequence number was seen, or a later one was."""
    NEW_BOOT = "new-boot"
    """An incarnation that we do not know yet; it has been challenged."""
    CHALLENGE = "challenge"
    """Not a message: a peer asks us to prove that we are alive."""
    ANSWER = "answer"
    """Not a message: a peer has proved it."""
    MALFORMED = "malformed"
    """Authentic, but no message of ours: a peer with another version?"""


@dataclass(frozen=True, slots=True)
class Opened:
    """An authentic, fresh message."""

    sender: NodeId
    boot: BootId
    message: Message


@dataclass(frozen=True, slots=True)
class Dropped:
    """No message. If `reply` is there, send it to where the datagram came from."""

    reason: DropReason
    reply: bytes | None = None


@dataclass(slots=True)
class _Session:
    boot: BootId
    seq: int


@dataclass(frozen=True, slots=True)
class _Challenge:
    nonce: int
    until_ns: int


def cluster_id(farm: str) -> int:
    """The farm's 32-bit number on the wire, from its name."""
    return int.from_bytes(hashlib.sha256(b"farmd cluster " + farm.encode()).digest()[:4], "big")


class Channel:
    """One incarnation of one node on the wire.

    `counters` counts what was dropped, by reason. `nonce` draws 64 random bits; it is a parameter for tests only.
    """

    def __init__(
        self,
        ring: KeyRing,
        farm: str,
        me: NodeId,
        boot: BootId,
        members: frozenset[NodeId],
        *,
        nonce: Callable[[], int] = lambda: secrets.randbits(64),
    ) -> None:
        self._ring = ring
        self._cluster = cluster_id(farm)
        self._me = me
        self._boot = boot
        self._members = members - {me}
        self._nonce = nonce
        self._seq = 0
        self._sealer = self._derive(ring.active, me, boot)
        self._ciphers: dict[tuple[int, NodeId, BootId], AESGCM] = {}
        self._sessions: dict[NodeId, _Session] = {}
        self._challenges: dict[NodeId, dict[BootId, _Challenge]] = {}
        self.counters: Counter[DropReason] = Counter()

    def seal(self, message: Message) -> bytes:
        """`message` as a datagram, which may go to any number of peers over any number of networks."""
        return self._seal(Frame.MESSAGE, encode(message))

    def open(self, datagram: bytes, now_ns: int) -> Opened | Dropped:
        """What a received datagram says. Never raises, whatever the bytes."""
        result = self._open(datagram, now_ns)
        if isinstance(result, Dropped):
            self.counters[result.reason] += 1
        return result

    def _seal(self, frame: Frame, body: bytes) -> bytes:
        self._seq += 1
        header = HEADER.pack(MAGIC, self._ring.active, frame, self._me, self._cluster, self._boot, self._seq)
        return header + self._sealer.encrypt(_gcm_nonce(self._seq), body, header)

    def _open(self, datagram: bytes, now_ns: int) -> Opened | Dropped:
        if not HEADER.size + TAG_BYTES <= len(datagram) <= MAX_DATAGRAM:
            return Dropped(DropReason.SHORT)
        magic, key_id, frame, number, cluster, boot_number, seq = HEADER.unpack_from(datagram)
        sender, boot = NodeId(number), BootId(boot_number)
        if magic != MAGIC or cluster != self._cluster or frame not in Frame.__members__.values():
            return Dropped(DropReason.FOREIGN)
        if sender not in self._members:
            return Dropped(DropReason.UNKNOWN_SENDER)
        if key_id not in self._ring.keys:
            return Dropped(DropReason.UNKNOWN_KEY)
        session = self._sessions.get(sender)
        if session is not None and session.boot == boot and seq <= session.seq:
            return Dropped(DropReason.DUPLICATE)
        body = self._decrypt(key_id, sender, boot, seq, datagram)
        if body is None:
            return Dropped(DropReason.FORGED)
        if session is not None and session.boot == boot:
            session.seq = seq
        return self._dispatch(Frame(frame), sender, boot, seq, body, now_ns)

    def _dispatch(
        self, frame: Frame, sender: NodeId, boot: BootId, seq: int, body: bytes, now_ns: int
    ) -> Opened | Dropped:
        if frame is Frame.CHALLENGE:
            return self._answer(body)
        if frame is Frame.ANSWER:
            return self._believe(sender, boot, seq, body, now_ns)
        session = self._sessions.get(sender)
        if session is None or session.boot != boot:
            return Dropped(DropReason.NEW_BOOT, self._challenge(sender, boot, now_ns))
        try:
            return Opened(sender, boot, decode(body))
        except WireError:
            return Dropped(DropReason.MALFORMED)

    def _challenge(self, sender: NodeId, boot: BootId, now_ns: int) -> bytes:
        """Ask a new incarnation to return a fresh nonce. Older challenges stay valid, so that a replay evicts none."""
        known = self._challenges.setdefault(sender, {})
        for old in [one for one, challenge in known.items() if challenge.until_ns <= now_ns]:
            del known[old]
        if boot not in known:
            if len(known) >= _MOST_CHALLENGES:
                del known[next(iter(known))]
            known[boot] = _Challenge(self._nonce(), now_ns + CHALLENGE_LIFE_NS)
        return self._seal(Frame.CHALLENGE, _CHALLENGE.pack(sender, boot, known[boot].nonce))

    def _answer(self, body: bytes) -> Dropped:
        """Return the nonce if it is meant for this very incarnation."""
        if len(body) != _CHALLENGE.size:
            return Dropped(DropReason.MALFORMED)
        node, boot, _ = _CHALLENGE.unpack(body)
        mine = (node, boot) == (self._me, self._boot)
        return Dropped(DropReason.CHALLENGE, self._seal(Frame.ANSWER, body) if mine else None)

    def _believe(self, sender: NodeId, boot: BootId, seq: int, body: bytes, now_ns: int) -> Dropped:
        """Begin a session with a sender that has returned our nonce in time."""
        if len(body) != _CHALLENGE.size:
            return Dropped(DropReason.MALFORMED)
        node, named, nonce = _CHALLENGE.unpack(body)
        challenge = self._challenges.get(sender, {}).get(boot)
        fresh = challenge is not None and challenge.nonce == nonce and now_ns < challenge.until_ns
        if fresh and (node, named) == (sender, boot):
            self._sessions[sender] = _Session(boot, seq)
            del self._challenges[sender]
            self._ciphers = {key: cipher for key, cipher in self._ciphers.items() if key[1] != sender or key[2] == boot}
        return Dropped(DropReason.ANSWER)

    def _decrypt(self, key_id: int, sender: NodeId, boot: BootId, seq: int, datagram: bytes) -> bytes | None:
        key = (key_id, sender, boot)
        known = self._ciphers.get(key)
        cipher = known or self._derive(*key)
        header = datagram[: HEADER.size]
        try:
            body = cipher.decrypt(_gcm_nonce(seq), datagram[HEADER.size :], header)
        except InvalidTag:
            return None
        # Only what decrypted is kept, so that forged boot ids cannot fill the cache.
        if known is None and len(self._ciphers) < _MOST_CIPHERS:
            self._ciphers[key] = cipher
        return body

    def _derive(self, key_id: int, sender: NodeId, boot: BootId) -> AESGCM:
        """The key of one sender's one incarnation."""
        info = b"farmd" + struct.pack(">IH", self._cluster, sender)
        derived = HKDF(algorithm=SHA256(), length=32, salt=struct.pack(">Q", boot), info=info)
        return AESGCM(derived.derive(self._ring.keys[key_id]))


def _gcm_nonce(seq: int) -> bytes:
    return struct.pack(">IQ", 0, seq)
