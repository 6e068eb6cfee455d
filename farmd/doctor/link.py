# SPDX-License-Identifier: Apache-2.0
"""Rules about an interface that the filter is to be attached to. Pure.

What farmd sets by itself when it starts is only wrong once it has started: then somebody changed it back.
"""

from __future__ import annotations

from collections.abc import Iterator

from farmd.doctor.facts import LinkFacts
from farmd.doctor.finding import Finding, fail, ok, warn
from farmd.model.config import AttachMode, Delivery

# fmt: off
NATIVE_DRIVERS = frozenset((
    "bnxt_en", "cxgb4", "dpaa2-eth", "ena", "enetc", "fec", "gve", "hv_netvsc", "i40e", "iavf", "ice", "igb",
    "igc", "ixgbe", "ixgbevf", "mana", "mlx4_en", "mlx5_core", "mtk_eth_soc", "mvneta", "mvpp2", "nfp",
    "octeontx2", "qede", "sfc", "stmmac", "tsnep", "tun", "virtio_net", "vmxnet3", "xen-netfront",
))
# fmt: on
"""Drivers known to run XDP themselves (Linux 6.1); whether they do it with this configuration, only attaching tells."""
_ONE_BUFFER = 3498
"""The largest MTU whose frames fit one page beside XDP's room; above it a driver needs multi-buffer XDP."""
_NO_FOREIGN_SOURCE = frozenset(("ipvlan", "ipvtap"))
"""Kinds of links that share the MAC address of the one below."""
_WIRELESS = frozenset(("iwlwifi", "ath9k", "ath10k_pci", "ath11k_pci", "mt7921e", "rtw88_pci", "rtw89_pci", "brcmfmac"))
_AS_FARMD = {"arp_ignore": 1, "arp_announce": 2}
_MODE_WORDS = {"native": "xdpdrv", "generic": "xdpgeneric", "offloaded": "xdpoffload"}
"""What `ip link` calls the modes."""
_STRICT = 1
_SETTING_WHY = {
    "arp_ignore": "the kernel answers ARP for the VIP with this node's own MAC",
    "arp_announce": "the kernel may announce the VIP with this node's own MAC",
}


def judge(
    facts: LinkFacts, wanted: AttachMode, virtual_mac: bytes, ipv4: bool, delivery: Delivery = Delivery.FLOOD
) -> Iterator[Finding]:
    """Every finding about one interface; `ipv4`: the farm has an IPv4 VIP."""
    directed = delivery is Delivery.DIRECTED
    yield state(facts)
    yield programs(facts)
    yield mode(facts, wanted, directed=directed)
    yield mtu(facts, wanted)
    yield receive_offloads(facts)
    yield vlan_offload(facts, wanted, directed=directed)
    yield queues(facts)
    yield sending_on(facts, wanted) if directed else virtual_mac_accepted(facts, virtual_mac)
    if ipv4:
        for name in _AS_FARMD:
            yield arp_setting(facts, name)
        yield reverse_path(facts)


def state(facts: LinkFacts) -> Finding:
    """Nothing arrives on a link without carrier."""
    if not facts.up:
        return fail("link", f"{facts.name} is down or has no carrier", f"Plug it in: ip link set {facts.name} up")
    return ok("link", f"{facts.name} is up")


def programs(facts: LinkFacts) -> Finding:
    """An interface takes one XDP program."""
    foreign = [program for program in facts.programs if not program.ours]
    if foreign:
        names = ", ".join(f"{program.name} (id {program.number}, {program.mode})" for program in foreign)
        return fail(
            "foreign-xdp",
            f"{facts.name} carries another XDP program: {names}",
            f"Stop what attached it, or remove it: ip link set dev {facts.name} {_MODE_WORDS[foreign[0].mode]} off",
        )
    if facts.ours is not None:
        return ok("foreign-xdp", f"{facts.name} carries the farm's filter (id {facts.ours.number}) and no other")
    return ok("foreign-xdp", f"{facts.name} carries no XDP program")


def mode(facts: LinkFacts, wanted: AttachMode, *, directed: bool = False) -> Finding:
    """Native is in the driver and fast; generic is behind it, slower, and works everywhere."""
    kind = facts.interface.kind
    driver = facts.interface.driver or kind or "an unknown driver"
    native = _is_native(facts, wanted)
    if kind == "veth" and directed:
        how = "native, because farm.toml says so" if native else "generic, which sends frames on whatever its peer does"
        return ok("attach-mode", f"{facts.name}: {how}")
    if kind == "veth" and native:
        return fail(
            "attach-mode",
            f"{facts.name} is a veth in native mode, where frames to the virtual MAC are lost before the stack",
            'Set `attach_mode = "auto"` or "generic" in farm.toml',
        )
    if kind == "veth":
        return ok(
            "attach-mode", f"{facts.name}: generic, because a veth loses frames to the virtual MAC in native mode"
        )
    if facts.ours is not None and facts.ours.mode == "native":
        return ok("attach-mode", f"{facts.name}: native ({driver})")
    if wanted is AttachMode.GENERIC:
        return ok("attach-mode", f"{facts.name}: generic, because farm.toml says so")
    if facts.ours is not None:
        return warn(
            "attach-mode",
            f"{facts.name}: generic ({driver} refused native XDP), so a packet costs more",
            "Look in dmesg for the driver's reason (often MTU, LRO or too few queues), mend it and restart farmd",
        )
    if facts.interface.driver in NATIVE_DRIVERS:
        return ok("attach-mode", f"{facts.name}: native can be expected ({driver})")
    return warn(
        "attach-mode",
        f"{facts.name}: {driver} is not known to run XDP itself, so the filter will be generic and cost more a packet",
        "Nothing has to be done; for more packets a second use a NIC whose driver supports XDP",
    )


def mtu(facts: LinkFacts, wanted: AttachMode) -> Finding:
    """The filter itself takes frames of many buffers."""
    size = facts.interface.mtu
    if size <= _ONE_BUFFER or facts.interface.kind == "veth" or wanted is AttachMode.GENERIC:
        return ok("mtu", f"{facts.name}: {size}")
    return warn(
        "mtu",
        f"{facts.name}: {size} needs a driver with multi-buffer XDP, else the filter will be generic",
        f"If `farmctl status` then says generic, lower it: ip link set {facts.name} mtu {_ONE_BUFFER}",
    )


def receive_offloads(facts: LinkFacts) -> Finding:
    """A NIC that joins segments hands the filter what no wire carried, and most drivers refuse native XDP then."""
    on = [name for name in ("large-receive-offload", "rx-gro-hw") if facts.features.get(name)]
    if not on:
        return ok("receive-offloads", f"{facts.name}: the NIC joins no segments (LRO and GRO-HW are off)")
    short = " ".join(f"{'lro' if name.startswith('large') else name} off" for name in on)
    return warn(
        "receive-offloads",
        f"{facts.name}: {' and '.join(on)} is on, so the NIC joins segments before the filter sees them",
        f"Switch it off: ethtool -K {facts.name} {short}",
    )


def _is_native(facts: LinkFacts, wanted: AttachMode) -> bool:
    return wanted is AttachMode.NATIVE or bool(facts.ours and facts.ours.mode == "native")


def sending_on(facts: LinkFacts, wanted: AttachMode) -> Finding:
    """Delivery `directed` needs an interface that sends what XDP gives it, under another source address."""
    if facts.interface.driver in _WIRELESS or facts.interface.kind in _NO_FOREIGN_SOURCE:
        what = facts.interface.kind or facts.interface.driver
        return fail(
            "sending-on",
            f"{facts.name} ({what}) sends under its own MAC address only, so what is sent on would be lost",
            "Attach to the interface below it, or use another delivery",
        )
    if facts.interface.kind == "veth" and _is_native(facts, wanted):
        return warn(
            "sending-on",
            f"{facts.name} is a veth in native mode: what it sends on is lost unless its other end has XDP or GRO on, "
            "and so is what came without a computed checksum",
            'Set `attach_mode = "auto"` in farm.toml; or `ethtool -K PEER gro on`, and `tx off` where clients are',
        )
    return ok("sending-on", f"{facts.name} can send frames on to other nodes")


def vlan_offload(facts: LinkFacts, wanted: AttachMode, *, directed: bool = False) -> Finding:
    """With it the NIC takes the tag off before native XDP, so that an answer from the filter has none."""
    generic = facts.interface.kind == "veth" or wanted is AttachMode.GENERIC
    generic = facts.ours.mode == "generic" if facts.ours else generic
    if not facts.features.get("rx-vlan-hw-parse") or generic:
        return ok("rx-vlan-offload", f"{facts.name}: the filter sees VLAN tags")
    return warn(
        "rx-vlan-offload",
        f"{facts.name}: the NIC strips VLAN tags, so ARP answers to tagged clients"
        f"{' and what is sent on' if directed else ''} would leave without one",
        f"If clients reach the VIP by a tagged VLAN: ethtool -K {facts.name} rxvlan off",
    )


def queues(facts: LinkFacts) -> Finding:
    """Each receive queue is worked off by one CPU at a time."""
    if facts.queues is None or facts.interface.kind:
        return ok("queues", f"{facts.name}: no hardware queues to set")
    if facts.queues == 1 < facts.cpus:
        return warn(
            "queues",
            f"{facts.name}: 1 receive queue for {facts.cpus} CPUs, so one CPU filters everything",
            f"If the NIC has more (ethtool -l {facts.name}): ethtool -L {facts.name} combined {facts.cpus}",
        )
    return ok("queues", f"{facts.name}: {facts.queues} receive queues for {facts.cpus} CPUs")


def virtual_mac_accepted(facts: LinkFacts, virtual_mac: bytes) -> Finding:
    """Frames to a MAC that is not the NIC's own never reach the filter unless the NIC is told."""
    mac = virtual_mac.hex(":")
    if facts.interface.mac == virtual_mac:
        return fail(
            "virtual-mac",
            f"{facts.name} has the farm's virtual MAC {mac} as its own, so switches learn it and stop flooding",
            "Change `virtual_mac` in farm.toml, or the interface's own MAC",
        )
    if virtual_mac in facts.accepted_macs:
        return ok("virtual-mac", f"{facts.name}: {mac} is in its filter")
    if facts.promiscuous:
        return ok("virtual-mac", f"{facts.name} is promiscuous and takes {mac}")
    if facts.ours is None:
        return ok("virtual-mac", f"{facts.name} does not take {mac} yet; farmd tells it when it starts")
    return fail(
        "virtual-mac",
        f"{facts.name} does not take frames to {mac}, so the filter sees no client",
        f"Restart farmd, or: bridge fdb add {mac} dev {facts.name} self permanent",
    )


def arp_setting(facts: LinkFacts, name: str) -> Finding:
    """The kernel must keep quiet about VIPs: the filter answers for them."""
    check, value, least = name.replace("_", "-"), facts.settings.get(name), _AS_FARMD[name]
    if value is None or value >= least:
        return ok(check, f"{facts.name}: {name} is {'not needed here' if value is None else value}")
    if facts.ours is None:
        return ok(check, f"{facts.name}: {name} is {value}; farmd sets {least} when it starts")
    return fail(
        check,
        f"{facts.name}: {name} is {value}, so {_SETTING_WHY[name]}",
        f"Set net.ipv4.conf.{facts.name.replace('.', '/')}.{name}={least}, and keep whatever reset it from doing so",
    )


def reverse_path(facts: LinkFacts) -> Finding:
    """Strict filtering silently drops clients whose way back leads through another interface."""
    value = facts.settings.get("rp_filter")
    if value != _STRICT:
        return ok("rp-filter", f"{facts.name}: rp_filter is {value or 0}")
    if facts.ours is None:
        return ok("rp-filter", f"{facts.name}: rp_filter is strict; farmd sets the loose form when it starts")
    return warn(
        "rp-filter",
        f"{facts.name}: rp_filter is strict, so clients whose way back is another interface are dropped silently",
        f"Set net.ipv4.conf.{facts.name.replace('.', '/')}.rp_filter=2",
    )
