# SPDX-License-Identifier: Apache-2.0
"""A lab whose nodes share the VIP by the iptables `cluster` match instead of farmd.

As iptables-extensions(8) describes it: clients resolve the VIP to a multicast MAC, so every node gets every packet, and
a node marks what the match says is its own and drops the rest. The match also makes a node's own packets acceptable
to TCP, which takes nothing that was addressed to a multicast MAC. A recipe that lets packets through without the match
needs help with that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from farmd.lab import netns
from farmd.lab.lab import Lab
from farmd.lab.plan import VIP, Host

MULTICAST_MAC = "01:00:5e:7f:01:01"
SEED = 0xDEADBEEF
_ON_VIP = f"-A PREROUTING -i eth0 -d {VIP}"
_AS_UNICAST = (
    "table netdev farm { chain ingress { type filter hook ingress device eth0 priority 0; "
    f"ether daddr {MULTICAST_MAC} meta pkttype set host; }}; }}"
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A way to use the match.

    `pick_up`: connection tracking takes up connections in their middle, which is the kernel's default and what the
    manual page says to switch off. `keep_established`: what the node's connection tracking knows is let through before
    the match is asked.
    """

    name: str
    pick_up: bool
    keep_established: bool


RECIPES = (
    Recipe("cluster match, kernel's defaults", pick_up=True, keep_established=False),
    Recipe("cluster match, manual page", pick_up=False, keep_established=False),
    Recipe("cluster match, established kept", pick_up=False, keep_established=True),
)


def rules(recipe: Recipe, total: int, slots: Sequence[int]) -> str:
    """A node's mangle table for iptables-restore, which puts it in force at once; `slots`: the node's own, from 1."""
    lines = ["*mangle"]
    if recipe.keep_established:
        lines.append(f"{_ON_VIP} -m conntrack --ctstate ESTABLISHED -j ACCEPT")
    if slots:
        mask = sum(1 << slot - 1 for slot in slots)
        lines.append(
            f"{_ON_VIP} -m cluster --cluster-total-nodes {total} --cluster-local-nodemask {mask:#x}"
            f" --cluster-hash-seed {SEED:#x} -j MARK --set-mark 0xffff"
        )
    return "\n".join([*lines, f"{_ON_VIP} -m mark ! --mark 0xffff -j DROP", "COMMIT", ""])


class ClusterLab(Lab):
    """The same hosts, switch and web servers as in any lab; farmd does not run. Begins with a slot a node."""

    def share(self, recipe: Recipe, total: int, slots: Mapping[str, Sequence[int]]) -> None:
        """Deal `total` slots out; a node that is not named gets none. One node after another, as by hand."""
        for host in self.plan.serving:
            text = rules(recipe, total, slots.get(host.name, ()))
            command = self.command(host.name, ["iptables-legacy-restore"])
            netns.tool(command, subject=host.name, text=text)

    def prepare(self, recipe: Recipe) -> None:
        """Addresses, neighbours and settings as the manual page has them, and the first shares."""
        for host in self.plan.serving:
            netns.write_sysctls(host.namespace, {"net/ipv4/conf/all/arp_ignore": "1"})
            netns.ip_batch(host.namespace, f"addr add {VIP}/32 dev lo\nmaddr add {MULTICAST_MAC} dev eth0\n")
            if recipe.keep_established:
                netns.nft(host.namespace, _AS_UNICAST)
        for host in self.plan.client_hosts:
            entry = f"neigh replace {VIP} lladdr {MULTICAST_MAC} dev eth0 nud permanent\n"
            netns.ip_batch(host.namespace, entry)
        names = [host.name for host in self.plan.serving]
        self.share(recipe, len(names), {name: (slot,) for slot, name in enumerate(names, 1)})
        for host in self.plan.serving:  # connection tracking, and so its settings, is there since the first rule
            loose = "1" if recipe.pick_up else "0"
            netns.write_sysctls(host.namespace, {"net/netfilter/nf_conntrack_tcp_loose": loose})

    def stop_service(self, name: str) -> None:
        """End the web server of a node; `start` brings it back."""
        netns.clear(self.plan.host(name).namespace)

    def _start_daemon(self, host: Host, progress: Callable[[str], None]) -> None:
        """Nothing: the kernel alone decides here."""
