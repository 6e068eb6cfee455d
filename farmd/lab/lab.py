# SPDX-License-Identifier: Apache-2.0
"""A lab that is there: built, broken, healed and removed. Every verb may be called from a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from farmd.client import Client
from farmd.lab import netns, render
from farmd.lab.netns import Part, Process
from farmd.lab.plan import PIN_DIR, RUN_DIR, Host, HostKind, LabPlan
from farmd.model.config import AttachMode, Delivery, Profile
from farmd.model.errors import FarmError, NotFound, Refused
from farmd.net import offloads

FARMD_PARTS = (Part.DAEMON, Part.ENGINE)
_STREAM_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class HostStatus:
    """What is left of one host: its processes, and which of its cables are pulled."""

    host: Host
    present: bool
    processes: tuple[Process, ...]
    links_down: tuple[str, ...]

    @property
    def summary(self) -> str:
        """One line for people."""
        if not self.present:
            return "gone"
        words = [f"{process.part}{' (stopped)' if process.stopped else ''}" for process in self.processes]
        words += [f"{device} down" for device in self.links_down]
        return ", ".join(words) or "idle"


@dataclass(frozen=True, slots=True)
class LabStatus:
    """A lab as it is now. `cuts` are directed pairs of switch ports that the switch drops."""

    plan: LabPlan
    hosts: tuple[HostStatus, ...]
    cuts: tuple[tuple[str, str], ...]


class Lab:
    """One farm on this machine.

    `up` writes down what it is about to build before it builds, so `down` removes everything even if the process that
    built it was killed. Errors: NotPermitted without root, FarmError with the package to install, KernelError when
    `ip`, `nft` or a process fails.
    """

    def __init__(self, plan: LabPlan) -> None:
        self.plan = plan

    @classmethod
    def open(cls, name: str, *, run_dir: Path = RUN_DIR, pin_dir: Path = PIN_DIR) -> Lab:
        """The lab called `name` that somebody built on this machine. NotFound if there is none."""
        plan = _read_plan(LabPlan(name, run_dir=run_dir, pin_dir=pin_dir))
        if plan is None:
            raise NotFound(f"lab {name}", "there is no such lab on this machine", f"Run `farmctl lab up --name {name}`")
        return cls(plan)

    # -- building and removing ------------------------------------------------------------------------------------

    def up(self, progress: Callable[[str], None] = lambda _: None) -> None:
        """Build the lab, or complete it if it is there. On any failure, what was made is removed again."""
        netns.require_tools({"haproxy": "haproxy"} if self.plan.balancers else None)
        with self._alone():
            present = _read_plan(self.plan)
            if present is not None and present != self.plan and _is_whole(present):
                raise Refused(
                    f"lab {self.plan.name}",
                    "it exists with another shape",
                    "Run `farmctl lab down`, or use another name",
                )
            if present != self.plan or not _is_whole(self.plan):
                self._remove()
                try:
                    self._build(progress)
                except BaseException:
                    self._remove()
                    raise
            for host in self.plan.balancers:
                self._start_balancer(host)
            for host in self.plan.members:
                self._start_missing(host, progress)

    def down(self) -> None:
        """Remove namespaces, processes, pins and files, whatever state they are in. Safe to repeat."""
        netns.require_tools()
        with self._alone():
            self._remove()

    def status(self) -> LabStatus:
        """What is there now, from the kernel's point of view (ask a node's API for the farm's)."""
        hosts = tuple(self._host_status(host) for host in self.plan.hosts)
        return LabStatus(self.plan, hosts, self._cuts())

    # -- hosts ----------------------------------------------------------------------------------------------------

    def exec(self, host: str, argv: Sequence[str], *, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command on a host and wait for it; output is captured, the exit status is the caller's to judge."""
        command = netns.enter(self.plan.host(host).namespace, argv)
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)

    def command(self, host: str, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` on a host, for callers that start it themselves."""
        return netns.enter(self.plan.host(host).namespace, argv)

    def api(self, host: str) -> Client:
        """A member's local API."""
        return Client(self.plan.home(self._member(host)) / "api.sock")

    def kill(self, host: str) -> None:
        """kill -9 of a node's daemon and engine. Its filter and its nginx stay: the lease must stop it."""
        self._signal(host, FARMD_PARTS, signal.SIGKILL)

    def kill_daemon(self, host: str) -> None:
        """kill -9 of the daemon alone; its engine lives on for its grace."""
        self._signal(host, (Part.DAEMON,), signal.SIGKILL)

    def stop(self, host: str) -> None:
        """Ask a node's daemon to end as a service manager would (SIGTERM)."""
        self._signal(host, (Part.DAEMON,), signal.SIGTERM)

    def freeze(self, host: str, parts: Sequence[Part] = FARMD_PARTS) -> None:
        """SIGSTOP of a node's daemon and engine, or of one of them."""
        self._signal(host, parts, signal.SIGSTOP)

    def thaw(self, host: str, parts: Sequence[Part] = FARMD_PARTS) -> None:
        """SIGCONT after `freeze`."""
        self._signal(host, parts, signal.SIGCONT)

    def start(self, host: str) -> None:
        """Start a node's daemon (and nginx) again if it does not run."""
        self._start_missing(self._member(host), lambda _: None)

    # -- the wire -------------------------------------------------------------------------------------------------

    def link_down(self, host: str, network: int = 0) -> None:
        """Pull a host's cable: its carrier goes, and the switch forgets what it learned on that port."""
        self._link(host, network, up=False)

    def link_up(self, host: str, network: int = 0) -> None:
        """Plug a host's cable in again."""
        self._link(host, network, up=True)

    def cut(self, source: str, target: str) -> None:
        """Drop everything from one host to another on every network; the way back stays open. Also `gateway`."""
        netns.nft(self.plan.switch, render.cut_rules(self.plan, [(source, target)]))

    def split(self, groups: Sequence[Sequence[str]]) -> None:
        """Let hosts of different groups not reach each other. Hosts that no group names belong to the first."""
        netns.nft(self.plan.switch, render.cut_rules(self.plan, render.split_pairs(self.plan, groups)))

    def heal(self) -> None:
        """Undo every cut and split, and plug every cable in."""
        netns.nft(self.plan.switch, render.HEAL_RULES)
        commands = "".join(render.link_command(link, up=True) for host in self.plan.hosts for link in host.links)
        netns.ip_batch(self.plan.switch, commands)

    # -- how it is done -------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Only one process builds or removes this lab. The lock ends with its owner, so it cannot go stale."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as lock:
            try:
                lock.bind(f"\0farmd-lab/{self.plan.directory}")
            except OSError as error:
                raise Refused(
                    f"lab {self.plan.name}", "another process is building or removing it", "Wait for it"
                ) from error
            yield

    def _build(self, progress: Callable[[str], None]) -> None:
        plan = self.plan
        make_folder(plan.directory)
        _write_plan(plan)
        progress(f"switch and {len(plan.hosts)} hosts")
        for namespace in (plan.switch, *(host.namespace for host in plan.hosts)):
            netns.tool(["ip", "netns", "add", namespace], subject=namespace)
        netns.write_sysctls(plan.switch, render.sysctls(None))
        for host in plan.hosts:
            netns.write_sysctls(host.namespace, render.sysctls(host))
        netns.ip_batch(plan.switch, render.switch_batch(plan))
        netns.bridge_batch(plan.switch, render.port_batch(plan))
        if plan.attach_mode is AttachMode.NATIVE:
            self._prepare_native()
        for host in plan.hosts:
            netns.ip_batch(host.namespace, render.host_batch(host))
        netns.nft(plan.switch, render.switch_rules())
        self._write_files()
        (plan.directory / "whole").touch()

    def _prepare_native(self) -> None:
        """What a cable between network cards does by itself, and veth only when told.

        The switch's end takes what native XDP sends (it does so with GRO on), and hosts compute their checksums: veth
        leaves that undone, which XDP cannot know.
        """
        for host in self.plan.hosts:
            for link in host.links:
                netns.in_namespace(self.plan.switch, partial(offloads.switch, link.port, offloads.GRO, True))
                netns.in_namespace(host.namespace, partial(offloads.switch, link.device, offloads.TX_CHECKSUM, False))

    def _write_files(self) -> None:
        from farmd.membership.keys import KeyRing  # cryptography is slow to import, and only `up` needs it

        for host in self.plan.balancers:
            home = self.plan.home(host)
            home.mkdir()
            (home / "haproxy.cfg").write_text(render.haproxy_cfg(self.plan))
        key = KeyRing.new().render()
        for host in self.plan.members:
            home = self.plan.home(host)
            (home / "nginx" / "tmp").mkdir(parents=True)
            (home / "state").mkdir()
            (home / "farm.toml").write_text(render.farm_toml(self.plan, host))
            with os.fdopen(os.open(home / "farm.key", os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
                file.write(key)
            (home / "nginx" / "nginx.conf").write_text(render.nginx_conf(host))
            line = f"{host.name} holds this connection open\n"
            (home / "nginx" / "stream.txt").write_text(line * (_STREAM_BYTES // len(line)))
            # nginx's worker gives up root before it reads stream.txt.
            for folder in (home / "nginx" / "tmp", home / "nginx", home, self.plan.directory, self.plan.run_dir):
                folder.chmod(0o755)

    def _start_missing(self, host: Host, progress: Callable[[str], None]) -> None:
        home = self.plan.home(host)
        running = {process.part for process in netns.processes(host.namespace)}
        if host.kind is HostKind.NODE and Part.NGINX not in running:
            prefix = f"{home / 'nginx'}/"
            argv = ["nginx", "-p", prefix, "-c", f"{prefix}nginx.conf", "-e", f"{prefix}error.log"]
            netns.start_detached(host.namespace, argv, log=home / "nginx.log")
        if Part.DAEMON not in running:
            self._start_daemon(host, progress)

    def _start_daemon(self, host: Host, progress: Callable[[str], None]) -> None:
        progress(f"farmd on {host.name}")
        home = self.plan.home(host)
        environment = {"FARMD_LAB_PLAIN_SWAP": "1"} if self.plan.plain_swap else {}
        argv = [sys.executable, "-m", "farmd.daemon", "--config", str(home / "farm.toml")]
        netns.start_detached(host.namespace, argv, log=home / "farmd.log", environment=environment)

    def _start_balancer(self, host: Host) -> None:
        home = self.plan.home(host)
        if Part.HAPROXY not in {process.part for process in netns.processes(host.namespace)}:
            argv = ["haproxy", "-db", "-f", str(home / "haproxy.cfg")]
            netns.start_detached(host.namespace, argv, log=home / "haproxy.log")

    def _remove(self) -> None:
        mine = [name for name in netns.namespaces() if self.plan.owns_namespace(name)]
        for namespace in mine:
            netns.clear(namespace)
        # A pin keeps its program attached, so pins go before the interfaces they hold on to.
        shutil.rmtree(self.plan.pins, ignore_errors=True)
        for namespace in mine:
            netns.delete_namespace(namespace)
        shutil.rmtree(self.plan.directory, ignore_errors=True)
        with contextlib.suppress(OSError):  # other labs live there too, and each has its folder before its pins
            self.plan.run_dir.rmdir()
            self.plan.pin_dir.rmdir()

    def _member(self, name: str) -> Host:
        host = self.plan.host(name)
        if not host.is_member:
            raise Refused(host.name, "it runs no farmd", "Name a node or the witness")
        return host

    def _signal(self, name: str, parts: Sequence[Part], number: signal.Signals) -> None:
        host = self._member(name)
        # The daemon first: one that sees its engine die starts another at once.
        order = sorted(netns.processes(host.namespace), key=lambda process: process.part is not Part.DAEMON)
        hit = [
            process for process in order if process.part in parts and netns.send_signal(host.namespace, process, number)
        ]
        if not hit:
            raise Refused(host.name, f"no {' or '.join(parts)} runs there", "See `farmctl lab status`")

    def _link(self, name: str, network: int, *, up: bool) -> None:
        host = self.plan.host(name)
        if not 0 <= network < len(host.links):
            raise Refused(host.name, f"it has no link to network {network}", f"It has {len(host.links)}")
        netns.ip_batch(self.plan.switch, render.link_command(host.links[network], up=up))

    def _host_status(self, host: Host) -> HostStatus:
        if host.namespace not in netns.namespaces():
            return HostStatus(host, False, (), ())
        links = json.loads(netns.tool(["ip", "-n", self.plan.switch, "-json", "link"], subject=self.plan.switch))
        up = {link["ifname"] for link in links if "UP" in link["flags"]}
        down = tuple(link.device for link in host.links if link.port not in up)
        return HostStatus(host, True, tuple(netns.processes(host.namespace)), down)

    def _cuts(self) -> tuple[tuple[str, str], ...]:
        if self.plan.switch not in netns.namespaces():
            return ()
        argv = netns.enter(self.plan.switch, ["nft", "-j", "list", "set", *render.TABLE.split(), "cuts"])
        listing = json.loads(netns.tool(argv, subject=self.plan.switch))
        sets = [entry["set"] for entry in listing["nftables"] if "set" in entry]
        pairs = [element["concat"] for entry in sets for element in entry.get("elem", [])]
        return tuple(sorted((source, target) for source, target in pairs))


def make_folder(path: Path) -> None:
    """With its parent, which the last lab that goes removes: it may do so between our two steps."""
    for _ in range(100):
        with contextlib.suppress(FileNotFoundError):
            path.mkdir(parents=True, exist_ok=True)
            return
    path.mkdir(parents=True, exist_ok=True)


def _state_file(plan: LabPlan) -> Path:
    return plan.directory / "lab.json"


def _write_plan(plan: LabPlan) -> None:
    fields = {key: value for key, value in asdict(plan).items() if key not in ("run_dir", "pin_dir")}
    temporary = plan.directory / "lab.json.new"
    temporary.write_text(json.dumps(fields, indent=2) + "\n")
    temporary.replace(_state_file(plan))


def _read_plan(like: LabPlan) -> LabPlan | None:
    """The plan written down in the place where `like` would be."""
    try:
        fields = json.loads(_state_file(like).read_text())
        kinds = {"profile": Profile, "delivery": Delivery, "attach_mode": AttachMode}
        # What an older farmd wrote lacks what has come since.
        return replace(like, **fields | {key: kind(fields[key]) for key, kind in kinds.items() if key in fields})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        next_step = f"Run `farmctl lab down --name {like.name}`"
        raise FarmError(str(_state_file(like)), f"unreadable: {error}", next_step) from error


def _is_whole(plan: LabPlan) -> bool:
    """Whether the lab was built to its end and nobody removed a namespace since."""
    expected = {plan.switch, *(host.namespace for host in plan.hosts)}
    return (plan.directory / "whole").exists() and expected <= set(netns.namespaces())
