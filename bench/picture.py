# SPDX-License-Identifier: Apache-2.0
"""Draws results/peers.svg from results/peers.json: what a packet costs a node, beside the peers.

    python -m bench.picture

On a page of its own, light or dark as the reader's system prefers: it is readable wherever it is shown.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from html import escape
from typing import Any

from bench.report import RESULTS

WIDTH, MARGIN, LABEL, VALUE = 760, 16, 136, 96
ROW, BAR, GROUP_GAP, HEAD, FOOT = 24, 16, 34, 76, 40
PAPER = WIDTH - 2 * MARGIN - LABEL - VALUE
"""The longest bar."""
OURS = "farmd"
TITLE = "What a decision costs a node, in nanoseconds a packet"
BASES = "Refused: above XDP_DROP. Let through: above a node that decides nothing. Shorter is better."
STYLE = """
  .page { fill: #ffffff; stroke: #d1d9e0; }
  text { font: 13px system-ui, sans-serif; fill: #1f2328; }
  .title { font-size: 16px; font-weight: 600; }
  .group { font-weight: 600; }
  .note { font-size: 12px; fill: #59636e; }
  .ours { fill: #0969da; }
  .peer { fill: #8c959f; }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117; stroke: #3d444d; }
    text { fill: #e6edf3; }
    .note { fill: #9198a1; }
    .ours { fill: #4493f8; }
    .peer { fill: #6e7681; }
  }
"""


def draw(result: Mapping[str, Any]) -> str:
    """The picture of what `bench.peers` wrote."""
    packets: Mapping[str, Mapping[str, Mapping[str, float]]] = result["packets"]
    longest = max(node["cost_ns"] for nodes in packets.values() for node in nodes.values())
    lines = [_text(MARGIN, 28, TITLE, "title"), _text(MARGIN, 50, BASES, "note")]
    y = HEAD
    for load, nodes in packets.items():
        lines.append(_text(MARGIN, y + BAR, load, "group"))
        y += ROW
        for name, figures in nodes.items():
            lines += _bar(y, name, figures, longest)
            y += ROW
        y += GROUP_GAP - ROW
    lines.append(_text(MARGIN, y + 10, _where(result), "note"))
    height = y + FOOT
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    page = f'<path class="page" d="M.5 .5h{WIDTH - 1}v{height - 1}h-{WIDTH - 1}z"/>'
    return "\n".join([f'{head} role="img">', f"<style>{STYLE}</style>", page, *lines, "</svg>", ""])


def _bar(y: int, name: str, figures: Mapping[str, float], longest: float) -> list[str]:
    length = max(1.0, figures["cost_ns"] / longest * PAPER)
    kind = "ours" if name == OURS else "peer"
    times = "" if name == OURS else f"  ({figures['times_farmd']:.0f}x)"
    left = MARGIN + LABEL
    return [
        _text(MARGIN, y + BAR - 3, name),
        f'<rect class="{kind}" x="{left}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2"/>',
        _text(left + length + 8, y + BAR - 3, f"{figures['cost_ns']:.0f} ns{times}"),
    ]


def _where(result: Mapping[str, Any]) -> str:
    host = result["host"]
    return (
        f"One core of {host['cpu']}, Linux {host['kernel'].split('-')[0]}, live frames over veth. {result['command']}"
    )


def _text(x: float, y: float, words: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.0f}" y="{y:.0f}">{escape(words)}</text>'


def main() -> int:
    """Draw, and say where."""
    source, target = RESULTS / "peers.json", RESULTS / "peers.svg"
    if not source.exists():
        print("there are no figures yet: run `python -m bench.peers` first", file=sys.stderr)
        return 1
    target.write_text(draw(json.loads(source.read_text())))
    print(f"drawn: {target.relative_to(target.parents[2])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
