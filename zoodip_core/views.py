"""The page's words and pictures as HTML. Whatever comes from a user or a file is escaped."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from .history import Run
from .jobs import FAILED, FINISHED, Job

STYLE = """<style>
.zoodip-box{border:1px solid var(--border-color-primary,#8884);border-radius:8px;padding:10px 14px;margin:2px 0;
  overflow-wrap:anywhere}
.zoodip-box p{margin:.25em 0}
.zoodip-error{border-color:#c0392b;border-left:5px solid #c0392b}
.zoodip-warning{border-left:5px solid #d68910}
.zoodip-good{border-left:5px solid #1e8449}
.zoodip-bar{height:10px;border-radius:5px;background:#8883;overflow:hidden;margin:8px 0}
.zoodip-bar div{height:100%;background:#2e86c1}
.zoodip-facts{display:flex;flex-wrap:wrap;gap:4px 22px}
.zoodip-facts span b{display:block;font-size:1.15em;font-variant-numeric:tabular-nums}
.zoodip-facts span{font-size:.9em;min-width:5em}
.zoodip-chart{width:100%;height:auto;display:block;margin-top:6px}
.zoodip-chart text{fill:currentColor;font-size:11px;opacity:.75}
.zoodip-log{max-height:15em;overflow:auto;font-size:.8em;white-space:pre-wrap}
.zoodip-table td{padding:1px 12px 1px 0;vertical-align:top}
</style>"""
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 640, 200, 52, 22, 8
_POINTS = 320


def notice(text: str, kind: str = "") -> str:
    """A line for the user: of kind error, warning, good, or none. Nothing for an empty text."""
    if not text:
        return ""
    lines = "".join(f"<p>{escape(line)}</p>" for line in text.splitlines())
    role = ' role="alert"' if kind == "error" else ' role="status"'
    return f'<div class="zoodip-box zoodip-{kind}"{role}>{lines}</div>'


def status(job: Job) -> str:
    """How far a job is: state, progress, figures, loss chart, warnings, and why it failed."""
    kind = {FAILED: "error", FINISHED: "good"}.get(job.state, "")
    parts = [f"<p><b>{escape(job.token)}</b> &middot; {escape(job.state)}: {_lines(job.message)}</p>"]
    if job.steps:
        share = 100 * job.step / job.steps
        parts.append(f'<div class="zoodip-bar"><div style="width:{share:.2f}%"></div></div>')
        parts.append(_facts(job))
    if job.losses:
        parts.append(chart(job.losses, job.steps))
    parts += [f'<div class="zoodip-box zoodip-warning">{_lines(text)}</div>' for text in job.warnings]
    if job.log:
        parts.append(
            f'<details><summary>end of the log</summary><pre class="zoodip-log">{escape(job.log)}</pre></details>'
        )
    return (
        f'<div class="zoodip-box zoodip-{kind}" data-state="{job.state}" data-step="{job.step}">{"".join(parts)}</div>'
    )


def _facts(job: Job) -> str:
    facts = [("step", f"{job.step:,} of {job.steps:,}")]
    if job.losses:
        facts.append(("loss, smoothed", f"{job.smoothed:.4f}"))
    if job.rate:
        facts.append(("speed", f"{job.rate:.2f} it/s" if job.rate >= 0.1 else f"{1 / job.rate:.1f} s/it"))
    if job.open and job.rate:
        facts.append(("time left", duration(job.eta)))
    if job.memory:
        facts.append(("memory", size(job.memory)))
    spans = "".join(f"<span>{label}<b>{value}</b></span>" for label, value in facts)
    return f'<div class="zoodip-facts">{spans}</div>'


def checked(found: Mapping[str, Any]) -> str:
    """What a check found."""
    settings, memory, in_turn = found["settings"], found["memory"], found["memory_in_turn"]
    where = "graphics card" if found["device"] == "cuda" else "computer"
    room = f"{size(memory)} of the {where}'s memory"
    if in_turn < memory:
        room += f", or {size(in_turn)} where that is too much (candidates one after another)"
    steps, forwards = settings["steps"], found["forwards"]
    lines = [
        f"<p><b>{escape(found['model'])}</b> ({escape(found['family'])}), {escape(settings['weights'])} weights: takes "
        f"about {room}.</p>",
        f"<p>{found['images']} pictures, {found['captions']} captions; {steps:,} steps of {forwards} forward passes. "
        f"lr {settings['lr']:g}, mu {settings['mu']:g}, timesteps {settings['t_lower']}-{settings['t_upper']}.</p>",
    ]
    lines += [f"<p>Mind: {escape(text)}</p>" for text in found["warnings"]]
    kind = "warning" if found["warnings"] else "good"
    return f'<div class="zoodip-box zoodip-{kind}" role="status">{"".join(lines)}</div>'


def run_details(run: Run) -> str:
    """A run's settings and how it ended."""
    told = (
        "initializer",
        "weights",
        "num_vectors",
        "n",
        "mu",
        "lr",
        "lr_schedule",
        "t_lower",
        "t_upper",
        "tau",
        "seed",
    )
    rows = [
        ("token", run.token),
        ("model", run.model),
        ("state", f"{run.state}, {run.step:,} of {run.steps:,} steps"),
        *((name, str(run.settings[name])) for name in told if name in run.settings),
        ("folder", str(run.folder)),
    ]
    if run.message:
        rows.insert(3, ("why", run.message))
    cells = "".join(f"<tr><td>{escape(label)}</td><td>{_lines(text)}</td></tr>" for label, text in rows)
    return f'<div class="zoodip-box"><table class="zoodip-table">{cells}</table></div>'


def run_label(run: Run) -> str:
    """A run in one line."""
    return f"{run.name} · {run.state} · {run.step:,} / {run.steps:,} steps · {ago(time.time() - run.when)}"


def installation(why: str, lines: Sequence[str], running: bool, failed: bool) -> str:
    """What is missing, and how its installation goes."""
    title = (
        "Installing the trainer"
        if running
        else "The installation ended early; it can be tried again"
        if failed
        else why
    )
    log = f'<pre class="zoodip-log">{escape(chr(10).join(lines))}</pre>' if lines else ""
    return f'<div class="zoodip-box zoodip-warning"><p>{_lines(title)}</p>{log}</div>'


def _lines(text: str) -> str:
    return "<br>".join(escape(text).splitlines())


def size(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"


def duration(seconds: float) -> str:
    """A time for people."""
    whole = round(seconds) if math.isfinite(seconds) else 0
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 60} min {whole % 60:02} s" if whole >= 60 else f"{whole} s"


def ago(seconds: float) -> str:
    """How long ago, for people."""
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        count = int(seconds // length)
        if count >= 1:
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


# ---------------------------------------------------------------- the loss chart


def chart(losses: Sequence[float], steps: int) -> str:
    """The losses so far as an SVG: a band from the least to the most of neighbouring steps, and their running mean."""
    finite = [loss if math.isfinite(loss) else 0.0 for loss in losses]
    groups = _grouped(finite)
    lows, highs = [min(group) for _, group in groups], [max(group) for _, group in groups]
    means = _smoothed([sum(group) / len(group) for _, group in groups])
    top = sorted(highs)[int(0.98 * (len(highs) - 1))] * 1.15 or 1.0
    across, high = _WIDTH - _LEFT - 8, _HEIGHT - _BOTTOM - _TOP

    def point(step: float, loss: float) -> str:
        x = _LEFT + across * step / max(steps, len(losses), 1)
        return f"{x:.1f},{_TOP + high * (1 - min(loss / top, 1)):.1f}"

    places = [place for place, _ in groups]
    band = [point(x, y) for x, y in zip(places, highs, strict=True)]
    band += [point(x, y) for x, y in reversed(list(zip(places, lows, strict=True)))]
    line = [point(x, y) for x, y in zip(places, means, strict=True)]
    marks = "".join(
        f'<text x="{_LEFT - 6}" y="{_TOP + high * (1 - part) + 4:.0f}" text-anchor="end">{top * part:.3g}</text>'
        for part in (0, 0.5, 1)
    )
    return (
        f'<svg class="zoodip-chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="loss of every step">'
        f'<path d="M{_LEFT} {_TOP}V{_TOP + high}H{_LEFT + across}" fill="none" stroke="currentColor" opacity=".4"/>'
        f'<polygon points="{" ".join(band)}" fill="#5dade2" opacity=".35"/>'
        f'<polyline points="{" ".join(line)}" fill="none" stroke="#c0392b" stroke-width="2"/>{marks}'
        f'<text x="{_LEFT + across}" y="{_HEIGHT - 6}" text-anchor="end">step {max(steps, len(losses)):,}</text>'
        f'<text x="{_LEFT}" y="{_HEIGHT - 6}">loss: each step, and its running mean</text></svg>'
    )


def _grouped(losses: Sequence[float]) -> list[tuple[float, Sequence[float]]]:
    """Neighbouring steps together, as many as a chart has points for, each with its place."""
    each = max(1, math.ceil(len(losses) / _POINTS))
    return [(i + (len(losses[i : i + each]) + 1) / 2, losses[i : i + each]) for i in range(0, len(losses), each)]


def _smoothed(means: Sequence[float]) -> list[float]:
    half = max(1, len(means) // 20)
    windows = (means[max(0, i - half) : i + half + 1] for i in range(len(means)))
    return [sum(window) / len(window) for window in windows]
