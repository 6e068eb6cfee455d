# SPDX-License-Identifier: Apache-2.0
"""An independent witness on the wire: who answered which SYN, and when.

It listens on the switch's client ports, so it sees what clients see, whatever the nodes believe about themselves. Times
are the kernel's receive times (CLOCK_REALTIME, nanoseconds).
"""

from __future__ import annotations

import ctypes
import select
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from farmd.lab.netns import in_namespace
from farmd.lab.packets import Announcement, Flow, capture_filter, read_announcement, read_syn
from farmd.lab.plan import VIP, VIP6, LabPlan

_ETH_P_ALL = 0x0003
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE, _SO_TIMESTAMPNS = 26, 33, 35
_SOL_PACKET, _PACKET_STATISTICS, _PACKET_OUTGOING = 263, 6, 4
_RECEIVE_BUFFER = 32 << 20
_BURST = 256
_EXAMPLES = 5


@dataclass(slots=True)
class Asked:
    """One SYN (one sequence number of one flow), and every answer to it as (time, node's MAC)."""

    flow: Flow
    at_ns: int
    answers: list[tuple[int, bytes]] = field(default_factory=list)

    @property
    def answered_by(self) -> frozenset[bytes]:
        """The MACs that answered; more than one is what must never be."""
        return frozenset(mac for _, mac in self.answers)


@dataclass(frozen=True, slots=True)
class Observation:
    """What the wire says about a span of time."""

    syns: int
    answered: int
    by_node: dict[str, int]
    doubles: int
    """SYNs that more than one node answered; must never be."""
    examples: tuple[str, ...]
    """The first few of those, in words."""
    virtual_mac_sources: int
    """Frames that came from the virtual MAC; one would teach the switch a port, and flooding would end."""
    wrong_announcements: tuple[str, ...]
    """Somebody told a client another MAC for a VIP than the virtual one, or in delivery `directed` than its own."""
    lost_frames: int
    """Frames the capture had no room for; anything but 0 weakens the rest."""

    @property
    def clean(self) -> bool:
        """Whether one node at most answered each SYN, and every VIP stayed on the virtual MAC."""
        return not (self.doubles or self.wrong_announcements or self.virtual_mac_sources or self.lost_frames)


class Observer:
    """A capture on every client's port of a lab's switch, from `start` (or `with`) until `stop`."""

    def __init__(self, plan: LabPlan) -> None:
        self.plan = plan
        self.announcements: list[tuple[int, Announcement]] = []
        self._asked: dict[tuple[Flow, int], Asked] = {}
        self._from_virtual_mac = 0
        self._lost = 0
        self._sockets: list[socket.socket] = []
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to listen. The lab must be up."""
        ports = [host.links[0].port for host in self.plan.client_hosts]
        self._sockets = in_namespace(self.plan.switch, lambda: [open_capture(port) for port in ports])
        self._thread = threading.Thread(target=self._listen, name="observer", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop listening; what was seen stays. Safe to repeat."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        for capture in self._sockets:
            self._lost += lost_frames(capture)
            capture.close()
        self._sockets = []

    def __enter__(self) -> Observer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def asked(self, since_ns: int = 0, until_ns: int | None = None) -> list[Asked]:
        """The SYNs of a span of time, in order."""
        seen = list(self._asked.values())
        return [asked for asked in seen if since_ns <= asked.at_ns and (until_ns is None or asked.at_ns < until_ns)]

    def observation(self, since_ns: int = 0, until_ns: int | None = None) -> Observation:
        """The verdict over a span of time."""
        self._lost += sum(lost_frames(capture) for capture in self._sockets)
        announced = [said for at, said in self.announcements if since_ns <= at and (until_ns is None or at < until_ns)]
        return judge(self.plan, self.asked(since_ns, until_ns), announced, self._from_virtual_mac, self._lost)

    def _listen(self) -> None:
        poller = select.poll()
        by_number = {capture.fileno(): capture for capture in self._sockets}
        for number in by_number:
            poller.register(number, select.POLLIN)
        while not self._stopping.is_set():
            for number, _ in poller.poll(100):
                self._drain(by_number[number])

    def _drain(self, capture: socket.socket) -> None:
        for _ in range(_BURST):
            try:
                frame, extra, _, address = capture.recvmsg(256, 64)
            except BlockingIOError:
                return
            except OSError:  # the port went away under us, and with it everything there was to see
                return
            self._note(frame, received_at(extra), outgoing=address[2] == _PACKET_OUTGOING)

    def _note(self, frame: bytes, at_ns: int, *, outgoing: bool) -> None:
        if outgoing and frame[6:12] == self.plan.virtual_mac:
            self._from_virtual_mac += 1
        segment = read_syn(frame)
        # The switch floods a SYN to the other clients too: only the port it came in on counts.
        if segment is not None and not outgoing and not segment.answer:
            self._asked.setdefault((segment.flow, segment.sequence), Asked(segment.flow, at_ns))
        elif segment is not None and outgoing and segment.answer:
            asked = self._asked.get((segment.flow, segment.sequence))
            if asked is not None:
                asked.answers.append((at_ns, segment.source_mac))
        elif outgoing and (said := read_announcement(frame)) is not None:
            self.announcements.append((at_ns, said))


def judge(
    plan: LabPlan, asked: Iterable[Asked], announced: Iterable[Announcement], from_virtual_mac: int, lost: int
) -> Observation:
    """Say what a list of SYNs and announcements amounts to. Pure."""
    syns = answered = 0
    by_node: Counter[str] = Counter()
    doubles: list[Asked] = []
    for one in asked:
        syns += 1
        names = sorted(plan.node_of_mac(mac) or mac.hex(":") for mac in one.answered_by)
        answered += bool(names)
        by_node.update(names)
        if len(names) > 1:
            doubles.append(one)
    wrong = [
        f"{said.address} was announced at {said.announced_mac.hex(':')} by {said.source_mac.hex(':')}"
        for said in announced
        if said.address in (VIP, VIP6) and said.announced_mac != (plan.virtual_mac or said.source_mac)
    ]
    examples = tuple(_in_words(plan, one) for one in doubles[:_EXAMPLES])
    return Observation(syns, answered, dict(by_node), len(doubles), examples, from_virtual_mac, tuple(wrong), lost)


def _in_words(plan: LabPlan, one: Asked) -> str:
    answers = ", ".join(
        f"{plan.node_of_mac(mac) or mac.hex(':')} after {(at - one.at_ns) / 1e6:.1f} ms" for at, mac in one.answers
    )
    return f"{one.flow} at {one.at_ns / 1e9:.3f} was answered by {answers}"


def open_capture(device: str) -> socket.socket:
    """A non-blocking packet socket on `device` of the calling thread's namespace, for `capture_filter` frames."""
    capture = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    program = capture_filter()
    buffer = ctypes.create_string_buffer(program)
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    capture.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, header)
    capture.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
    capture.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    capture.setblocking(False)
    capture.bind((device, _ETH_P_ALL))
    return capture


def received_at(extra: list[tuple[int, int, bytes]]) -> int:
    """The kernel's receive time from a message's ancillary data, in nanoseconds of CLOCK_REALTIME."""
    for level, kind, data in extra:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
            seconds, nanoseconds = struct.unpack("qq", data[:16])
            return int(seconds * 1_000_000_000 + nanoseconds)
    raise ValueError("the kernel gave no receive time")


def lost_frames(capture: socket.socket) -> int:
    """Frames dropped by the kernel for want of room since the last call."""
    _, dropped = struct.unpack("II", capture.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
    return int(dropped)
