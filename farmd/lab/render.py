# SPDX-License-Identifier: Apache-2.0
"""The texts that make a lab: farm.toml and nginx.conf of a node, batches for `ip`, rules for `nft`. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import permutations

from farmd.lab.plan import (
    FIRST_CLIENT_PORT,
    GATEWAY,
    SERVICE_PORTS,
    VIP,
    VIP6,
    Host,
    HostKind,
    LabPlan,
    Link,
)
from farmd.model.config import HEALTH_PORT, Delivery, Profile
from farmd.model.errors import FarmError
from farmd.model.rules import Affinity

GATEWAY_NAME = "gateway"
"""How cuts and splits name the gateway, which lives on the switch."""
TABLE = "bridge farmlab"


def farm_toml(plan: LabPlan, host: Host) -> str:
    """The farm.toml of one member. Only its [node] part differs between members."""
    home = plan.home(host)
    lines = [
        "[farm]",
        f"name = {_quote(plan.name)}",
        'key_file = "farm.key"',
        f"profile = {_quote(plan.profile.value)}",
        f"timing = {_quote(plan.timing)}",
        f"delivery = {_quote(plan.delivery.value)}",
    ]
    if plan.virtual_mac is not None:
        lines.append(f"virtual_mac = {_quote(plan.virtual_mac.hex(':'))}")
    if plan.profile is Profile.AVAILABLE:
        lines.append(f"gateway = {_quote(str(GATEWAY))}")
    lines += ["", "[node]", f"name = {_quote(host.name)}"]
    if host.kind is HostKind.NODE:
        lines += ['interfaces = ["eth0"]', f"attach_mode = {_quote(plan.attach_mode.value)}"]
    lines += [
        f"api_socket = {_quote(str(home / 'api.sock'))}",
        f"engine_socket = {_quote(str(home / 'engine.sock'))}",
        f"pin_dir = {_quote(str(plan.pins / host.name))}",
        f"state_dir = {_quote(str(home / 'state'))}",
    ]
    for member in plan.members:
        lines += _member(member)
    for vip in (VIP, VIP6):
        lines += ["", "[[vip]]", f"address = {_quote(str(vip))}"]
    for vip in (VIP, VIP6):
        for port, affinity in SERVICE_PORTS.items():
            lines += [
                "",
                "[[rule]]",
                f"name = {_quote(f'web{vip.version}-{port}')}",
                f"vip = {_quote(str(vip))}",
                'protocol = "tcp"',
                f"port = {port}",
                f"affinity = {_quote(affinity.value)}",
            ]
    return "\n".join(lines) + "\n"


def nginx_conf(host: Host) -> str:
    """An nginx that says which node it is, keeps connections open, and drips `/stream` for long-held ones."""
    listens = "\n".join(f"        listen {port};\n        listen [::]:{port};" for port in SERVICE_PORTS)
    temporary = "\n".join(
        f"    {kind}_temp_path tmp/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""worker_processes 1;
daemon off;
pid nginx.pid;
error_log error.log warn;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    default_type text/plain;
    keepalive_timeout 1h;
    keepalive_requests 1000000000;
    tcp_nodelay on;
{temporary}
    server {{
{listens}
        add_header Farm-Node {host.name};
        add_header Farm-Connection {host.name}/$connection/$connection_requests;
        location / {{ return 200 "{host.name}\\n"; }}
        location = /stream {{
            limit_rate 256;
            alias stream.txt;
        }}
    }}
}}
"""


def haproxy_cfg(plan: LabPlan) -> str:
    """A load balancer that asks the health URL of each rule twice a second and believes what it hears twice."""
    home = plan.home(plan.balancers[0])
    lines = [
        "global",
        f"    stats socket {home / 'haproxy.sock'} mode 600 level admin",
        "defaults",
        "    timeout connect 1s",
        "    timeout client 1h",
        "    timeout server 1h",
        "    timeout check 2s",
        "    retries 3",
        "    option redispatch 1",
        f"    default-server check port {HEALTH_PORT} inter 500ms fall 2 rise 2",
    ]
    for port, affinity in SERVICE_PORTS.items():
        lines += [
            f"listen web-{port}",
            "    mode tcp",
            *(f"    bind {f'[{vip}]' if vip.version == 6 else vip}:{port}" for vip in (VIP, VIP6)),
            f"    balance {'source' if affinity is Affinity.CLIENT_IP else 'roundrobin'}",
            "    option httpchk",
            f"    http-check send meth GET uri /health/rule/web4-{port} ver HTTP/1.1 hdr Host farm",
            "    http-check expect status 200",
        ]
        lines += [f"    server {host.name} {host.addresses[0].ip}:{port}" for host in plan.serving]
    return "\n".join(lines) + "\n"


def switch_batch(plan: LabPlan) -> str:
    """For `ip -batch` in the switch's namespace: bridges and one cable for each link of each host.

    In delivery `multicast` the switch snoops IGMP and asks, as switches do where multicast is used.
    """
    lines = ["link set lo up"]
    multicast = plan.delivery is Delivery.MULTICAST
    snooping = "mcast_snooping 1 mcast_querier 1" if multicast else "mcast_snooping 0"
    for bridge in plan.bridges:
        lines.append(f"link add {bridge} type bridge stp_state 0 forward_delay 0 {snooping}")
        lines.append(f"link set {bridge} up")
    lines.append(f"addr add {GATEWAY}/24 dev {plan.bridges[0]}")
    for host in plan.hosts:
        for link in host.links:
            lines.append(
                f"link add {link.port} type veth peer name {link.device} address {link.mac_text} netns {host.namespace}"
            )
            lines.append(f"link set {link.port} master {link.bridge} up")
            if multicast and host.kind is HostKind.NODE:
                # Once a querier is about, a bridge that snoops keeps IP packets from ports where no router is heard.
                lines.append(f"link set {link.port} type bridge_slave mcast_router 2")
    return "\n".join(lines) + "\n"


def port_batch(plan: LabPlan) -> str:
    """For `bridge -batch` in the switch's namespace: no unknown unicast where nobody needs it, but in `flood`."""
    if plan.delivery is Delivery.FLOOD:
        return ""
    return "".join(f"link set dev {link.port} flood off\n" for host in plan.hosts for link in host.links)


def host_batch(host: Host) -> str:
    """For `ip -batch` in a host's namespace: its own addresses. VIPs are farmd's to set."""
    lines = ["link set lo up"]
    for link in host.links:
        lines.append(f"link set {link.device} up")
        for address in link.addresses:
            nodad = " nodad" if address.version == 6 else ""
            lines.append(f"addr add {address} dev {link.device}{nodad}")
    if host.kind is HostKind.BALANCER:
        device = host.links[0].device
        lines += [f"addr add {VIP}/32 dev {device}", f"addr add {VIP6}/128 dev {device} nodad"]
    return "\n".join(lines) + "\n"


def sysctls(host: Host | None) -> dict[str, str]:
    """Settings of a host's namespace (None: the switch's), by path below /proc/sys."""
    if host is None:
        return {"net/ipv6/conf/all/disable_ipv6": "1", "net/ipv6/conf/default/disable_ipv6": "1"}
    common = {"net/ipv6/conf/all/accept_ra": "0", "net/ipv6/conf/default/accept_ra": "0"}
    common |= {"net/ipv6/conf/default/accept_dad": "0", "net/ipv6/conf/default/router_solicitations": "0"}
    if host.kind is HostKind.CLIENT:
        common["net/ipv4/ip_local_port_range"] = f"{FIRST_CLIENT_PORT} 60999"
    return common


def switch_rules() -> str:
    """The switch's filter, at first empty: (from, to) pairs of ports that are cut, and ports cut from the gateway."""
    return f"""table {TABLE} {{
    set cuts {{ type ifname . ifname; }}
    set to_gateway {{ type ifname; }}
    set from_gateway {{ type ifname; }}
    chain forward {{ type filter hook forward priority 0; iifname . oifname @cuts drop; }}
    chain input {{ type filter hook input priority 0; iifname @to_gateway drop; }}
    chain output {{ type filter hook output priority 0; oifname @from_gateway drop; }}
}}
"""


def cut_rules(plan: LabPlan, pairs: Iterable[tuple[str, str]]) -> str:
    """nft commands that drop everything from the first host of each pair to the second, on every network."""
    elements: dict[str, list[str]] = {"cuts": [], "to_gateway": [], "from_gateway": []}
    for source, target in pairs:
        if GATEWAY_NAME in (source, target):
            name = "from_gateway" if source == GATEWAY_NAME else "to_gateway"
            other = plan.host(target if source == GATEWAY_NAME else source)
            elements[name].append(f'"{other.links[0].port}"')
            continue
        for one, other_link in zip(plan.host(source).links, plan.host(target).links, strict=False):
            elements["cuts"].append(f'"{one.port}" . "{other_link.port}"')
    return "".join(
        f"add element {TABLE} {name} {{ {', '.join(items)} }}\n" for name, items in elements.items() if items
    )


def split_pairs(plan: LabPlan, groups: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
    """Every directed pair between different groups; hosts (and the gateway) that no group names belong to the first."""
    side: dict[str, int] = {}
    for index, group in enumerate(groups):
        for name in group:
            full = name if name == GATEWAY_NAME else plan.host(name).name
            if side.setdefault(full, index) != index:
                raise FarmError(name, "it stands in two groups of the split", "Name each host once")
    everybody = [*(host.name for host in plan.hosts), GATEWAY_NAME]
    return [pair for pair in permutations(everybody, 2) if side.get(pair[0], 0) != side.get(pair[1], 0)]


HEAL_RULES = "".join(f"flush set {TABLE} {name}\n" for name in ("cuts", "to_gateway", "from_gateway"))


def link_command(link: Link, *, up: bool) -> str:
    """For `ip -batch` in the switch's namespace: plug or pull a cable. The host sees its carrier come or go."""
    return f"link set {link.port} {'up' if up else 'down'}\n"


def _member(member: Host) -> list[str]:
    addresses = ", ".join(_quote(str(link.addresses[0].ip)) for link in member.links)
    lines = [
        "",
        "[[member]]",
        f"name = {_quote(member.name)}",
        f"number = {member.number}",
        f"addresses = [{addresses}]",
    ]
    if member.kind is HostKind.WITNESS:
        lines.append('role = "witness"')
    return lines


def _quote(text: str) -> str:
    return json.dumps(text)
