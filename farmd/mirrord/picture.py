# SPDX-License-Identifier: Apache-2.0
"""What a node shows of itself, JSON-ready: the core's picture with the engines' counters."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from farmd.mirror.checksum import PHASES, Progress
from farmd.mirror.generation import Cause, History
from farmd.mirror.spread import top
from farmd.mirror.state import Link, Phase
from farmd.mirrord.shell import Shell

_NOBODY_ELSES = (Cause.FIRST, Cause.FORCED)
"""A history that ends so has been on this node only: a peer that was in sync would have been left by going on alone."""


async def picture(shell: Shell) -> dict[str, Any]:
    """`farmctl mirror status`."""
    status, config = shell.node.status(), shell.config
    stats = await shell.serving.stats()
    in_sync = status.phase is Phase.SECONDARY or (status.phase is Phase.PRIMARY and status.link is Link.SYNCED)
    hello = shell.peer_hello
    return {
        **config.identity,
        "role": status.phase.value,
        "in_sync": in_sync,
        "why": status.why,
        "trouble": shell.trouble or shell.peer.trouble,
        "generation": str(status.generation),
        "uptodate": status.uptodate,
        "half_synced": status.half_synced,
        "split": status.split,
        "gate": status.gate.value,
        "ack": config.ack,
        "arbiter": config.arbiter,
        "encrypted": config.keys is not None,
        "peer": {
            "connected": status.connected,
            "address": config.peer,
            "primary": hello.primary if hello else None,
            "uptodate": hello.uptodate if hello else None,
            "generation": str(hello.generation) if hello else None,
        },
        "lag": {"bytes": stats.get("lag_bytes", 0), "frames": stats.get("lag_frames", 0)},
        "dirty": _dirty(stats, status.history) if status.phase is Phase.PRIMARY and not in_sync else None,
        "resync": _resync(shell),
        "pace": shell.throttle.shown(),
        "last_resync": shell.resync.last,
        "last_promotion_ms": shell.took.last,
        "job": None if shell.comparing.job is None else _job(shell),
        "history": _history(status.history),
        "peer_history": _history(status.peer_history),
        "mounted": _mounted(shell) if status.phase is Phase.PRIMARY else {},
        "engine_pid": shell.serving.engine_pid,
        "events": list(shell.happened)[-10:],
    }


def _mounted(shell: Shell) -> dict[str, str]:
    """The devices that whoever uses the directories must see there; another one is not replicated."""
    return {str(path): top(path).device for path in shell.config.paths}


def _dirty(stats: dict[str, Any], history: History) -> dict[str, Any]:
    """What changed since the peer went, as far as this process saw; `more`: only a comparison of everything tells."""
    has_no_copy = bool(history) and history[-1].cause in _NOBODY_ELSES
    return {
        "bytes": stats.get("dirty_bytes", 0),
        "files": stats.get("dirty_files", 0),
        "more": has_no_copy or stats.get("dirty_more", False),
    }


def _resync(shell: Shell) -> dict[str, Any] | None:
    shown, progress = shell.resync.shown, shell.resync.progress() or shell.following.progress()
    if shown is None and progress is None:
        return None
    seconds = time.monotonic() - shown.began if shown else 0.0
    answer: dict[str, Any] = {"what": shown.what if shown else "receiving", "seconds": round(seconds, 1)}
    if shown:
        answer |= {"passes": shown.passes, "bytes_moved_before": shown.bytes_moved}
    in_pass = time.monotonic() - shown.pass_began if shown else 0.0
    return answer | (_progress(progress, in_pass) if progress else {})


def _progress(progress: Progress, seconds: float) -> dict[str, Any]:
    done = progress.share
    return {
        "phase": PHASES[progress.phase],
        "names": progress.files_seen,
        "bytes_read": progress.bytes_hashed,
        "bytes_sent": progress.bytes_sent,
        "share": round(done, 3),
        "eta_s": round(seconds / done - seconds, 1) if done > 0.01 and seconds else None,
    }


def _job(shell: Shell) -> dict[str, Any]:
    assert shell.comparing.job is not None
    return {
        "number": shell.comparing.job.number,
        "what": shell.comparing.job.what,
        "state": shell.comparing.job.state,
        "result": shell.comparing.job.result,
    }


def _history(history: History) -> list[dict[str, Any]]:
    return [
        {
            "generation": str(era.generation),
            "node": int(era.node),
            "cause": era.cause.value,
            "at": datetime.fromtimestamp(era.at_s, UTC).isoformat().replace("+00:00", "Z"),
        }
        for era in history
    ]
