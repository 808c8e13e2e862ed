"""The page's words and pictures as HTML. Whatever comes from a user or a file is escaped."""

from __future__ import annotations

import html
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ..base.texts import how_many, whole_text
from ..data.curves import smooth
from ..jobs.job import Job, Run
from ..jobs.protocol import CAPTION, FAILED, FINISHED
from .form import fields

STYLE = """<style>
.zoodip-title{display:flex;flex-wrap:wrap;align-items:baseline;gap:0 1em;padding:4px 0}
.zoodip-title h1{font-size:1.6em;font-weight:700;margin:0}
.zoodip-title p{opacity:.8;margin:0}
.zoodip-html,.zoodip-html .html-container,.zoodip-html .prose{padding:0!important;margin:0!important}
.zoodip-head{display:flex;align-items:center;gap:.6em;margin:.3em 0 0;font-size:1.05em;font-weight:600}
.zoodip-head span{display:inline-flex;align-items:center;justify-content:center;width:1.7em;height:1.7em;
  border-radius:50%;font-size:.85em;background:#8883}
.zoodip-hint{margin:0!important;opacity:.75;font-size:.92em}
.zoodip-box{border:1px solid var(--border-color-primary,#8884);border-radius:8px;padding:10px 14px;
  overflow-wrap:anywhere;background:var(--block-background-fill,transparent)}
.zoodip-box p{margin:.25em 0}
.zoodip-box ol{margin:.4em 0;padding:0 0 0 1.4em;list-style:decimal outside}
.zoodip-box li{margin:.25em 0;list-style:inherit}
.zoodip-box .zoodip-box{margin-top:8px}
.zoodip-error{border-color:#d9534f;border-left:5px solid #d9534f}
.zoodip-warning{border-left:5px solid #d68910}
.zoodip-good{border-left:5px solid #2a9d5c}
.zoodip-said{display:flex;flex-wrap:wrap;gap:0 .7em;align-items:baseline}
.zoodip-said b{font-size:1.15em}
.zoodip-bar{height:10px;border-radius:5px;background:#8883;overflow:hidden;margin:8px 0}
.zoodip-bar div{height:100%;background:#3584c8;transition:width .5s}
.zoodip-facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(6.2em,1fr));gap:4px 10px}
.zoodip-facts span{font-size:.85em}
.zoodip-facts b{display:block;font-size:1.2em;font-variant-numeric:tabular-nums;white-space:nowrap}
.zoodip-chart{width:100%;height:auto;display:block;margin-top:10px}
.zoodip-chart text{fill:currentColor;font-size:12px;opacity:.75}
.zoodip-chart path{fill:none;stroke:currentColor}
.zoodip-chart polygon,.zoodip-chart rect{fill:#3584c8;opacity:.3}
.zoodip-chart polyline{fill:none;stroke:#e4572e;stroke-width:2}
.zoodip-chart circle{fill:#e4572e}
.zoodip-log{max-height:15em;overflow:auto;font-size:.8em;white-space:pre-wrap}
.zoodip-box summary{cursor:pointer}
.zoodip-settings{grid-template-columns:repeat(auto-fill,minmax(9em,1fr));margin-top:8px}
.zoodip-settings b{font-size:1.05em;white-space:normal}
.zoodip-switch{min-width:min(200px,100%)!important}
.zoodip-unseen{display:none!important}
#zoodip_run_list{max-height:75vh;overflow:auto}
#zoodip_run_list .wrap{flex-direction:column;align-items:stretch}
#zoodip_pictures .grid-wrap{max-height:420px;min-height:0}
#zoodip_pictures .grid-container{grid-template-columns:repeat(auto-fill,minmax(108px,1fr))!important}
@media(min-width:1100px){#zoodip_work{position:sticky;top:8px;align-self:flex-start}}
#zoodip_refresh_models,#zoodip_add_folder,#zoodip_write_captions{align-self:flex-end}
</style>"""
TITLE = """<style>.gradio-container .app{max-width:1400px!important;padding-top:12px!important}</style>
<div class="zoodip-title"><h1>ZOODiP</h1><p>Teach Stable Diffusion a new subject or style, with forward passes only.</p>
</div>"""
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 210, 52, 14, 24, 22
_LONGEST = 200


def escape(text: str) -> str:
    """A text in HTML; what is not text in it, as in the name of a file that is none, is a question mark."""
    return html.escape(text.encode("utf-8", "replace").decode("utf-8"))


def framed(inside: str) -> str:
    """A chart in a box of its own."""
    return f'<div class="zoodip-box">{inside}</div>'


def heading(number: int, text: str) -> str:
    """The title of a part of the page."""
    return f'<div class="zoodip-head" role="heading" aria-level="3"><span>{number}</span>{escape(text)}</div>'


def hint(text: str) -> str:
    """A line that says what can be done."""
    return f'<p class="zoodip-hint">{escape(text)}</p>'


def notice(text: str, kind: str = "") -> str:
    """A line for the user: of kind error, warning, good, or none. Nothing for an empty text."""
    if not text:
        return ""
    lines = "".join(f"<p>{escape(line)}</p>" for line in text.splitlines())
    role = ' role="alert"' if kind == "error" else ' role="status"'
    return f'<div class="zoodip-box zoodip-{kind}"{role}>{lines}</div>'


def idle(resumable: Run | None) -> str:
    """What to do first, as long as nothing was trained."""
    lines = [
        "Choose a model, and add three to ten pictures of your subject.",
        "Give it a token, which is its new word, and the known word that comes nearest to it.",
        "Press Start. What is drawn for the token appears here while it learns.",
    ]
    steps = "".join(f"<li>{line}</li>" for line in lines)
    more = "<p>Just to see it work, choose a bundled subject: the embedded model learns it in minutes.</p>"
    if resumable is not None:
        more = (
            f"<p><b>{escape(resumable.name)}</b> was not finished: Resume starts at step {resumable.step:,} of "
            f"{resumable.steps:,}.</p>"
        )
    return f'<div class="zoodip-box" data-state="idle"><ol>{steps}</ol>{more}</div>'


def status(job: Job, waiting: Sequence[Job] = ()) -> str:
    """How far a job is: what it does, progress, figures, loss chart, warnings, why it failed, and who waits for it."""
    kind = {FAILED: "error", FINISHED: "good"}.get(job.state, "")
    said = f"{job.state}: {job.message}" if job.state == FAILED else job.message
    parts = [f'<p class="zoodip-said"><b>{escape(job.token)}</b><span>{_lines(said)}</span></p>']
    if job.steps:
        share = 100 * min(1, job.step / job.steps)
        parts.append(f'<div class="zoodip-bar"><div style="width:{share:.2f}%"></div></div>')
        parts.append(_facts(job))
    if job.losses:
        parts.append(chart(job.losses))
    parts += [f'<div class="zoodip-box zoodip-warning">{_lines(text)}</div>' for text in job.warnings]
    if job.log:
        parts.append(
            f'<details><summary>end of the log</summary><pre class="zoodip-log">{escape(job.log)}</pre></details>'
        )
    if waiting:
        names = ", ".join(f"<b>{escape(each.token)}</b>" for each in waiting)
        parts.append(f"<p>Next: {names}</p>")
    return (
        f'<div class="zoodip-box zoodip-{kind}" data-state="{job.state}" data-step="{job.step}">{"".join(parts)}</div>'
    )


def queued(text: str, job: Job) -> str:
    """What a job that was asked for will do, and what it waits for."""
    return f"{text}; {job.message}" if job.behind else text


def _facts(job: Job) -> str:
    facts = [("picture" if job.kind == CAPTION else "step", f"{job.step:,} of {job.steps:,}")]
    if job.losses:
        facts.append(("loss, smoothed", f"{job.smoothed:.4f}"))
    if job.rate:
        fast = job.rate >= 1
        facts.append(("steps a second", f"{job.rate:.1f}") if fast else ("seconds a step", f"{1 / job.rate:.1f}"))
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
    if size(in_turn) != size(memory):
        room += f", or {size(in_turn)} where that is too much (candidates one after another)"
    steps, forwards = settings["steps"], found["forwards"]
    named = found["model"] if found["model"] == found["family"] else f"{found['model']} ({found['family']})"
    lines = [
        f"<p><b>{escape(named)}</b>, {escape(settings['weights'])} weights: takes about {room}.</p>",
        f"<p>{how_many(found['images'], 'picture')}, {how_many(found['captions'], 'caption')}; "
        f"{how_many(steps, 'step', form=',')} of {how_many(forwards, 'forward pass', 'forward passes')}. "
        f"lr {settings['lr']:g}, mu {settings['mu']:g}, timesteps {settings['t_lower']}-{settings['t_upper']}.</p>",
    ]
    if found.get("sizes"):
        lines.append(f"<p>{escape(found['sizes'])}.</p>")
    lines += [f"<p>{escape(line[:1].upper() + line[1:])}.</p>" for line in found.get("masks", [])]
    if settings.get("target_prompt") and settings["alignment"]:
        lines.append(
            f"<p>It learns to leave the rest of {escape(settings['target_prompt'])} to the model, with an alignment of "
            f"{settings['alignment']:g}.</p>"
        )
    if settings.get("lora_rank"):
        lines.append(
            f"<p>Of the steps, {settings['lora_share']:.0%} learn weights: a LoRA of rank {settings['lora_rank']}.</p>"
        )
    lines += [f"<p>Mind: {escape(text)}</p>" for text in found["warnings"]]
    kind = "warning" if found["warnings"] else "good"
    return f'<div class="zoodip-box zoodip-{kind}" role="status">{"".join(lines)}</div>'


def run_head(run: Run) -> str:
    """How a run ended, and why."""
    kind = {FAILED: "error", FINISHED: "good"}.get(run.state, "")
    said = f"{run.state}, {run.step:,} of {how_many(run.steps, 'step', form=',')}"
    parts = [f'<p class="zoodip-said"><b>{escape(run.token)}</b><span>{escape(said)}</span></p>']
    if run.message:
        parts.append(f"<p>{_lines(run.message)}</p>")
    if run.lora:
        parts.append("<p>Weights were learned with it: draw with both, the token and its LoRA at a strength of 1.</p>")
    return f'<div class="zoodip-box zoodip-{kind}" data-run="{escape(run.name)}">{"".join(parts)}</div>'


def run_details(run: Run) -> str:
    """A run's settings."""
    rows = [("Model", run.model)]
    rows += [
        (each.setting.label, _setting(run.settings[each.name]))
        for each in fields()
        if each.name in run.settings and each.name not in ("model", "token")
    ]
    cells = "".join(f"<span>{escape(label)}<b>{escape(text)}</b></span>" for label, text in rows)
    return (
        f'<details class="zoodip-box"><summary>Settings and folder</summary><div class="zoodip-facts zoodip-settings">'
        f"{cells}</div><p>{escape(str(run.folder))}</p></details>"
    )


def _setting(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = f"{value:g}" if isinstance(value, float) else whole_text(str(value))
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."


def run_label(run: Run) -> str:
    """A run in one line."""
    steps = f"{run.step:,} / {how_many(run.steps, 'step', form=',')}"
    return f"{run.name} · {run.state} · {steps} · {ago(time.time() - run.when)}"


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
    if not math.isfinite(seconds):
        return "not known"
    whole = max(0, round(seconds))
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


def chart(losses: Sequence[float]) -> str:
    """The losses so far as an SVG: their running mean, and a standard deviation to either side of it as a band."""
    smoothed = smooth(losses)
    if not smoothed:
        return ""
    places, means = [point.step for point in smoothed], [point.mean for point in smoothed]
    lows = [max(0.0, point.mean - point.spread) for point in smoothed]
    highs = [point.mean + point.spread for point in smoothed]
    last, most = max(len(losses), 10), max(highs) * 1.05
    levels = _ticks(most, 4)
    across, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _BOTTOM - _TOP

    def x(step: float) -> float:
        return _LEFT + across * step / last

    def y(loss: float) -> float:
        return _TOP + high * (1 - min(max(loss / (most or 1.0), 0), 1))

    def points(steps: Sequence[float], values: Sequence[float]) -> str:
        return " ".join(f"{x(step):.1f},{y(loss):.1f}" for step, loss in zip(steps, values, strict=True))

    lines = "".join(f'<path d="M{_LEFT} {y(level):.1f}h{across}" opacity=".15"/>' for level in levels)
    marks = [f'<text x="{_LEFT - 6}" y="{y(level) + 4:.1f}" text-anchor="end">{level:.4g}</text>' for level in levels]
    marks += [
        f'<text x="{x(step):.1f}" y="{_HEIGHT - 5}" text-anchor="middle">{round(step):,}</text>'
        for step in _ticks(last, 6)
    ]
    return (
        f'<svg class="zoodip-chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="loss by step">{lines}'
        f'<path d="M{_LEFT} {_TOP + high}h{across}" opacity=".5"/>'
        f'<polygon points="{points([*places, *places[::-1]], [*highs, *lows[::-1]])}"/>'
        f'<polyline points="{points(places, means)}"/>'
        f'<circle cx="{x(places[-1]):.1f}" cy="{y(means[-1]):.1f}" r="3"/>{"".join(marks)}{_LEGEND}</svg>'
    )


_LEGEND = (
    f'<polyline points="{_LEFT},11 {_LEFT + 16},11"/><text x="{_LEFT + 22}" y="15">loss, running mean</text>'
    f'<rect x="{_LEFT + 146}" y="6" width="14" height="9"/><text x="{_LEFT + 166}" y="15">its spread</text>'
)


def _ticks(top: float, count: int) -> list[float]:
    """Round numbers from 0 to at most ``top``, about ``count`` of them."""
    if top < 1e-300:
        return [0.0]
    rough = top / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * 0.999)
    return [step * i for i in range(int(top / step * 1.0001) + 1)]
