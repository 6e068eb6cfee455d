# SPDX-License-Identifier: Apache-2.0
"""Port ranges and affinities on a farm that serves: rules come by a reload, servers answer, `explain` foretells."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from farmd.lab.farm import Farm
from farmd.lab.plan import VIP, VIP6
from farmd.model.answers import Explanation
from farmd.model.question import PacketKind
from tests.lab.conftest import MakeFarm
from tests.lab.traffic import PATIENCE_S, curl

pytestmark = [pytest.mark.root, pytest.mark.lab]

NODES = ["node1", "node2", "node3"]
UDP_PORT = 5353
RANGE = (8000, 8042, 8099)
BESIDE = (7999, 8100)
RULES = f"""
[[rule]]
name = "range4"
vip = "{VIP}"
protocol = "tcp"
port = "8000-8099"
affinity = "client-network"

[[rule]]
name = "range6"
vip = "{VIP6}"
protocol = "tcp"
port = "8000-8099"
affinity = "client-network"

[[rule]]
name = "datagrams"
vip = "{VIP}"
protocol = "udp"
port = {UDP_PORT}
affinity = "packet-id"
"""

NGINX = """
worker_processes 1;
daemon off;
pid {folder}/range.pid;
error_log {folder}/range.log warn;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/tmp/client_body;
    server {{
{listens}
        location / {{ return 200 "{node}\\n"; }}
    }}
}}
"""

UDP_SERVER = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
    server.setsockopt(socket.IPPROTO_IP, 15, 1)  # IP_FREEBIND
    server.bind((sys.argv[1], int(sys.argv[2])))
    print("ready", flush=True)
    while True:
        data, client = server.recvfrom(65536)
        server.sendto(f"{sys.argv[3]} {len(data)} {data[:8].decode()}".encode(), client)
"""

UDP_CLIENT = """
import json, socket, struct, sys
client, vip, port, size = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
raw.bind((client, 0))
listening = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
listening.bind((client, port))
listening.settimeout(3)
answers = {}
for ident in map(int, sys.argv[5:]):
    data = f"{ident:08}".encode().ljust(size, b".")
    datagram = struct.pack("!HHHH", port, port, 8 + len(data), 0) + data
    for at in range(0, len(datagram), 1480):
        piece = datagram[at : at + 1480]
        place = at // 8 | (0x2000 if at + 1480 < len(datagram) else 0)
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(piece), ident, place, 64, 17, 0)
        raw.sendto(head + socket.inet_aton(client) + socket.inet_aton(vip) + piece, (vip, 0))
    try:
        answers[ident] = listening.recv(100).decode().split()
    except TimeoutError:
        answers[ident] = None
listening.settimeout(0.3)
try:
    answers["twice"] = listening.recv(100).decode()
except TimeoutError:
    pass
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def farm(module_farm: MakeFarm) -> Iterator[Farm]:
    """Three nodes that got the rules above by a reload, with servers behind them."""
    made = module_farm()
    for node in NODES:
        file = made.lab.plan.home(made.lab.plan.host(node)) / "farm.toml"
        file.write_text(file.read_text() + RULES)
        made.lab.api(node).reload()
    made.wait("all nodes know the rules", lambda: all(knows(made, node) for node in NODES), seconds=PATIENCE_S)
    made.wait_serving(NODES, seconds=60)
    with ExitStack() as servers:
        for node in NODES:
            servers.enter_context(running(made, node, nginx_command(made, node)))
            server = [sys.executable, "-c", UDP_SERVER, str(VIP), str(UDP_PORT), node]
            servers.enter_context(running(made, node, server))
        made.wait("every node listens", lambda: all(listens(made, node) for node in NODES), seconds=PATIENCE_S)
        yield made


def knows(farm: Farm, node: str) -> bool:
    return "range6" in {rule["name"] for rule in farm.status(node)["rules"]}


def listens(farm: Farm, node: str) -> bool:
    table = farm.lab.exec(node, ["ss", "-Hlntu"]).stdout
    return all(f":{port} " in table for port in (*RANGE, UDP_PORT))


def nginx_command(farm: Farm, node: str) -> list[str]:
    folder = farm.lab.plan.home(farm.lab.plan.host(node)) / "nginx"
    listening = "\n".join(f"listen {port}; listen [::]:{port};" for port in (*RANGE, *BESIDE))
    config = folder / "range.conf"
    config.write_text(NGINX.format(folder=folder, node=node, listens=listening))
    return ["nginx", "-p", f"{folder}/", "-c", str(config), "-e", f"{folder}/range.log"]


@contextmanager
def running(farm: Farm, node: str, argv: list[str]) -> Iterator[None]:
    with subprocess.Popen(farm.lab.command(node, argv), stdout=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()
            process.wait(10)


def addresses(farm: Farm, version: int) -> list[tuple[str, str]]:
    """(client, one of its addresses)."""
    hosts = farm.lab.plan.client_hosts
    return [(host.name, str(each.ip)) for host in hosts for each in host.addresses if each.version == version][::3]


@pytest.mark.parametrize("vip", [VIP, VIP6], ids=["IPv4", "IPv6"])
def test_a_range_serves_a_whole_network_on_one_node(farm: Farm, vip: object) -> None:
    host = str(vip) if vip is VIP else f"[{vip}]"
    clients = addresses(farm, 4 if vip is VIP else 6)
    assert len(clients) > 4
    owner = farm.lab.api("node1").explain(clients[0][1], 4711, str(vip), 8042, "tcp").data["owner"]

    for client, address in clients:
        for port in RANGE:
            assert curl(farm, client, f"http://{host}:{port}/", "--interface", address) == (0, owner)
    by_address = {curl(farm, client, f"http://{host}:80/", "--interface", each)[1] for client, each in clients}
    assert len(by_address) > 1, "port 80 is shared out by address, so these clients are not all alike"


@pytest.mark.parametrize("port", BESIDE)
def test_what_is_beside_the_range_is_not_served(farm: Farm, port: int) -> None:
    client, address = addresses(farm, 4)[0]
    assert curl(farm, client, f"http://{VIP}:{port}/", "--interface", address, "-m", "1")[0] == 28


@pytest.mark.parametrize("size", [64, 4000], ids=["whole", "in three fragments"])
def test_each_datagram_goes_where_its_id_says(farm: Farm, size: int) -> None:
    """One client, one port: by any other affinity a single node would get them all. And nobody answers twice."""
    client, address = addresses(farm, 4)[0]
    idents = list(range(1000 + size, 1024 + size))
    command = [sys.executable, "-c", UDP_CLIENT, address, str(VIP), str(UDP_PORT), str(size), *map(str, idents)]
    done = farm.lab.exec(client, command, timeout=120)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)

    kind = "opening" if size < 1480 else "first-fragment"
    told = {}
    for ident in idents:
        data = farm.lab.api("node2").explain(address, UDP_PORT, str(VIP), UDP_PORT, "udp", kind, ident).data
        assert data["proof"] is not None
        assert data["proof"]["agrees"]
        told[str(ident)] = [data["owner"], str(size), f"{ident:08}"]
    assert answers == told
    assert len({owner for owner, *_ in told.values()}) == 3


EXPLAINED = [
    *((version, packet, 8042, "tcp") for version in (4, 6) for packet in PacketKind if packet is not PacketKind.ECHO),
    *((4, packet, UDP_PORT, "udp") for packet in PacketKind if packet is not PacketKind.ECHO),
    *((version, PacketKind.ECHO, None, None) for version in (4, 6)),
]


@pytest.mark.parametrize(("version", "packet", "service", "protocol"), EXPLAINED)
def test_the_filter_of_every_node_does_what_explain_says(
    farm: Farm, version: int, packet: PacketKind, service: int | None, protocol: str | None
) -> None:
    _, address = addresses(farm, version)[1]
    vip = str(VIP if version == 4 else VIP6)
    answers: list[Explanation] = []

    def agree() -> bool:
        """A node that was starved of the processor has no lease for a moment, and its filter drops what it owns."""
        answers[:] = [farm.lab.api(node).explain(address, 4711, vip, service, protocol, packet).data for node in NODES]
        return all(answer["proof"] and answer["proof"]["agrees"] for answer in answers)

    farm.wait("filter and explanation agree on every node", agree)
    passed = [node for node, answer in zip(NODES, answers, strict=True) if answer["proof"]["verdict"] == "pass"]  # type: ignore[index]
    lost = packet is PacketKind.LOST_FRAGMENT and protocol == "tcp"  # port 80 goes by address, 81 by connection
    assert passed == ([] if lost else [answers[0]["owner"]])


def test_drain_waits_for_connections_of_a_range(farm: Farm) -> None:
    """Sockets behind a range are counted in their buckets: a held connection keeps its node draining."""
    client, address = addresses(farm, 4)[0]
    owner = farm.lab.api("node1").explain(address, 1, str(VIP), 8042, "tcp").data["owner"]
    assert owner is not None
    holder = "import socket,sys,time; s=socket.create_connection((sys.argv[1],8042),5,(sys.argv[2],0)); time.sleep(600)"
    argv = farm.lab.command(client, [sys.executable, "-c", holder, str(VIP), address])
    with subprocess.Popen(argv) as process:
        try:
            farm.wait("it is counted", lambda: farm.connections(owner)[owner] == 1, seconds=PATIENCE_S)
            farm.lab.api(owner).drain(owner)
            farm.wait("it is held", lambda: held(farm, owner) == 1, seconds=PATIENCE_S)
            time.sleep(2)
            assert held(farm, owner) == 1
        finally:
            process.kill()
            process.wait()
    farm.wait("nothing is left", lambda: held(farm, owner) == 0, seconds=PATIENCE_S)
    farm.lab.api(owner).ready(owner)
    farm.wait_serving(NODES, seconds=60)


def held(farm: Farm, node: str) -> int | None:
    return next(one["held_connections"] for one in farm.status(node)["members"] if one["name"] == node)
