// The loss chart on a training node: drawing only. It knows nothing of ComfyUI but its colours.

const CANVAS_HEIGHT = 160 // at least; it takes what the node has
const GAP = 6
const MARGIN = { left: 40, right: 10, top: 22, bottom: 20 }
const FONT = "10px Inter, system-ui, sans-serif"
const MOST_POINTS = 2000 // of a curve that we draw; a node sends far fewer
const EMPTY_TEXT = "The loss appears here while the token learns."
const ENDED = ["finished", "stopped", "failed"]
const FIGURES = ["step", "steps", "rate", "eta", "loss", "memory"]

// .dom-widget is ComfyUI's box around us. Letting the mouse through makes zooming, dragging and the node's menu
// work over the chart as anywhere else on the node.
const STYLE = `
.dom-widget:has(> .zoodip-chart) { pointer-events: none !important; }
.zoodip-chart {
  --zoodip-line: #5fb4ff; --zoodip-warning: #f0b848; --zoodip-error: #ff7d73; --zoodip-done: #6bcf8a;
  display: flex; flex-direction: column; gap: ${GAP}px; overflow: hidden; pointer-events: none;
  font: 11px/15px Inter, system-ui, sans-serif; color: var(--input-text, #ddd);
}
.zoodip-chart.zoodip-light {
  --zoodip-line: #14619f; --zoodip-warning: #805300; --zoodip-error: #b3261e; --zoodip-done: #18692f;
}
.zoodip-frame {
  position: relative; flex: 1 1 ${CANVAS_HEIGHT}px; min-height: ${CANVAS_HEIGHT}px; border-radius: 6px;
  background: var(--comfy-input-bg, #222);
}
.zoodip-frame canvas { position: absolute; inset: 0; width: 100%; height: 100%; }
.zoodip-text { flex: none; overflow-wrap: anywhere; }
.zoodip-numbers { display: flex; flex-wrap: wrap; column-gap: 3px; font-variant-numeric: tabular-nums; }
.zoodip-numbers span { white-space: nowrap; }
.zoodip-numbers span:not(:last-child)::after { content: "·"; margin-left: 3px; opacity: 0.6; }
.zoodip-state { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 6; overflow: hidden; }
.zoodip-state[data-state="finished"] { color: var(--zoodip-done); }
.zoodip-state[data-state="failed"] { color: var(--zoodip-error); }
.zoodip-state[data-state="stopped"], .zoodip-warning { color: var(--zoodip-warning); }
`

/** A chart of the loss, and under it what a training tells of itself. Put `element` on the page. */
export class LossChart {
  constructor() {
    addStyle()
    this.element = make("div", "zoodip-chart")
    this.canvas = make("canvas", "zoodip-canvas")
    this.text = make("div", "zoodip-text")
    const frame = make("div", "zoodip-frame")
    frame.append(this.canvas)
    this.element.append(frame, this.text)
    this.data = null
    this.drawnFor = ""
    this.observer = new ResizeObserver(() => this.draw())
    this.observer.observe(this.canvas)
  }

  /** Show what the server sent, or `null` for nothing yet. */
  show(data) {
    this.data = data && cleaned(data)
    this.text.replaceChildren(...(this.data ? describe(this.data) : []))
    this.draw()
  }

  /** The height that canvas and text need, in CSS pixels. */
  minHeight() {
    return CANVAS_HEIGHT + (this.data ? GAP + this.text.offsetHeight : 0)
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.canvas
    if (!width || !height) return
    this.element.classList.toggle("zoodip-light", isDark(getComputedStyle(this.element).color))
    this.drawnFor = this.look()
    const ratio = this.pixelRatio()
    this.canvas.width = Math.round(width * ratio)
    this.canvas.height = Math.round(height * ratio)
    const ctx = this.canvas.getContext("2d")
    ctx.scale(ratio, ratio)
    ctx.font = FONT
    paint(ctx, width, height, this.data, colours(this.element))
  }

  /** Draw again if size, zoom or colours are others than when it was drawn. */
  refresh() {
    if (this.drawnFor !== this.look()) this.draw()
  }

  remove() {
    this.observer.disconnect()
  }

  look() {
    const { clientWidth, clientHeight } = this.canvas
    return [clientWidth, clientHeight, this.pixelRatio(), ...Object.values(colours(this.element))].join()
  }

  /** Screen pixels for each CSS pixel, ComfyUI's zoom included; in steps, as zooming would redraw at each frame. */
  pixelRatio() {
    const zoom = this.canvas.getBoundingClientRect().width / this.canvas.clientWidth || 1
    return Math.min(4, Math.max(1, Math.ceil(2 * zoom * window.devicePixelRatio) / 2))
  }
}

/** The data in fewer points and digits, to be kept in a workflow's file. */
export function compact(data, most = 120) {
  const { node: _node, workflow: _workflow, curve, ...rest } = data
  const { stride, raw, smoothed } = cleaned({ curve }).curve
  const merged = Math.ceil(raw.length / most) || 1
  const starts = raw.map((_, i) => i).filter((i) => i % merged === 0 && i + merged <= raw.length)
  return {
    ...rest,
    curve: {
      stride: stride * merged,
      raw: starts.map((i) => fourDigits(mean(raw.slice(i, i + merged)))),
      smoothed: starts.map((i) => fourDigits(smoothed[i + merged - 1])),
    },
  }
}

export const hasEnded = (data) => ENDED.includes(data?.state)

// ---------------------------------------------------------------- data

/** What can be drawn of data that may come from a workflow's file, which anybody can write. */
function cleaned(data) {
  const raw = numbers(data.curve?.raw)
  const smoothed = numbers(data.curve?.smoothed)
  const length = Math.min(raw.length, smoothed.length)
  const figures = FIGURES.filter((name) => Number.isFinite(data[name])).map((name) => [name, data[name]])
  return {
    ...Object.fromEntries(figures),
    state: String(data.state),
    text: String(data.text ?? ""),
    warnings: Array.isArray(data.warnings) ? data.warnings.map(String) : [],
    curve: {
      stride: Math.max(1, Number(data.curve?.stride) || 1),
      raw: raw.slice(0, length),
      smoothed: smoothed.slice(0, length),
    },
  }
}

const numbers = (list) => (Array.isArray(list) ? list.slice(0, MOST_POINTS).filter(Number.isFinite) : [])
const mean = (list) => list.reduce((sum, each) => sum + each, 0) / list.length
const fourDigits = (number) => Number(number.toPrecision(4))

// ---------------------------------------------------------------- text

function describe(data) {
  const lines = []
  const parts = numberTexts(data)
  if (parts.length) lines.push(make("div", "zoodip-numbers", ...parts.map((part) => make("span", "", part))))
  const state = make("div", "zoodip-state", stateText(data))
  state.dataset.state = String(data.state)
  return [...lines, state, ...data.warnings.map((text) => make("div", "zoodip-warning", `⚠ ${text}`))]
}

function numberTexts({ state, step, steps, rate, eta, loss, memory }) {
  const parts = []
  if (Number.isFinite(step)) parts.push(`step ${step}${Number.isFinite(steps) ? `/${steps}` : ""}`)
  if (rate > 0) parts.push(rate >= 1 ? `${short(rate)} it/s` : `${short(1 / rate)} s/it`)
  if (state === "training" && Number.isFinite(eta)) parts.push(`ETA ${clock(eta)}`)
  if (Number.isFinite(loss)) parts.push(`loss ${short(loss)}`)
  if (memory > 0) parts.push(memory < 1e8 ? `${(memory / 1e6).toFixed(1)} MB` : `${(memory / 1e9).toFixed(2)} GB`)
  return parts
}

function stateText({ state, text }) {
  if (state === "stopped") return text || "stopped"
  if (state === "training") return text || "learning; Cancel saves the state"
  return text ? `${state}: ${text}` : String(state)
}

/** Three significant digits. */
function short(number) {
  return Math.abs(number) >= 100 ? number.toFixed(0) : String(number.toPrecision(3))
}

function clock(seconds) {
  const whole = Math.round(seconds)
  const two = (number) => String(number).padStart(2, "0")
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60]
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`
}

// ---------------------------------------------------------------- drawing

function paint(ctx, width, height, data, colour) {
  const curve = data?.curve
  if (!curve?.raw.length) return paintMiddle(ctx, width, height, EMPTY_TEXT, colour)
  const area = { x: MARGIN.left, y: MARGIN.top }
  area.width = width - MARGIN.left - MARGIN.right
  area.height = height - MARGIN.top - MARGIN.bottom
  const steps = Math.max(curve.raw.length * curve.stride, data.steps || 0)
  const [low, high] = lossRange(curve)
  const scale = {
    x: (step) => area.x + (step / steps) * area.width,
    y: (loss) => area.y + (1 - (loss - low) / (high - low)) * area.height,
  }
  paintAxes(ctx, area, scale, ticks(0, steps, 5, [1, 2, 5]), ticks(low, high, 4, [1, 2, 2.5, 5]), colour)
  paintLegend(ctx, area, curve.stride, colour)
  ctx.save()
  ctx.beginPath()
  ctx.rect(area.x, area.y, area.width + MARGIN.right, area.height) // a spike leaves at the top
  ctx.clip()
  paintLine(ctx, scale, curve.stride, curve.raw, 1, colour.text, 0.4)
  paintLine(ctx, scale, curve.stride, curve.smoothed, 2, colour.line, 1)
  ctx.restore()
}

/** From the lowest loss to one that few are above: a single spike must not flatten the rest. */
function lossRange({ raw, smoothed }) {
  const sorted = [...raw].sort((a, b) => a - b)
  const low = sorted[0]
  const high = Math.max(sorted[Math.floor(0.99 * (sorted.length - 1))], smoothed.at(-1))
  const room = 0.05 * (high - low) || 0.05 * Math.abs(high) || 1
  return [low - room, high + room]
}

/** At most `most` round numbers from `low` to `high`. */
function ticks(low, high, most, factors) {
  const power = 10 ** Math.floor(Math.log10((high - low) / most))
  const multiples = (step) => {
    const first = Math.ceil(low / step - 1e-9)
    const last = Math.floor(high / step + 1e-9)
    return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)))
  }
  return [...factors, 10, 20].map((factor) => multiples(factor * power)).find((found) => found.length <= most)
}

function paintAxes(ctx, area, scale, steps, losses, colour) {
  ctx.strokeStyle = ctx.fillStyle = colour.text
  ctx.lineWidth = 1
  ctx.textBaseline = "middle"
  ctx.textAlign = "right"
  for (const loss of losses) {
    ctx.globalAlpha = 0.15
    line(ctx, area.x, scale.y(loss), area.x + area.width, scale.y(loss))
    ctx.globalAlpha = 0.75
    ctx.fillText(String(loss), area.x - 5, scale.y(loss))
  }
  ctx.textAlign = "center"
  for (const step of steps) {
    ctx.globalAlpha = 0.4
    line(ctx, scale.x(step), area.y + area.height, scale.x(step), area.y + area.height + 3)
    ctx.globalAlpha = 0.75
    const text = stepText(step)
    const half = ctx.measureText(text).width / 2
    const right = area.x + area.width + MARGIN.right - 3
    ctx.fillText(text, Math.min(scale.x(step), right - half), area.y + area.height + 11)
  }
  ctx.globalAlpha = 0.4
  line(ctx, area.x, area.y + area.height, area.x + area.width, area.y + area.height)
  ctx.globalAlpha = 1
}

const stepText = (step) => (step >= 10_000 ? `${step / 1000}k` : String(step))

function paintLegend(ctx, area, stride, colour) {
  const entries = [
    ["running mean", colour.line, 2, 1],
    [stride > 1 ? `mean of ${stride} steps` : "each step", colour.text, 1, 0.5],
  ]
  ctx.textBaseline = "middle"
  ctx.textAlign = "right"
  let right = area.x + area.width
  for (const [text, stroke, width, alpha] of entries) {
    ctx.fillStyle = colour.text
    ctx.globalAlpha = 0.75
    ctx.fillText(text, right, 11)
    right -= ctx.measureText(text).width + 5
    ctx.strokeStyle = stroke
    ctx.lineWidth = width
    ctx.globalAlpha = alpha
    line(ctx, right - 14, 11, right, 11)
    right -= 26
  }
  ctx.globalAlpha = 0.75
  ctx.textAlign = "left"
  ctx.fillText("loss", 8, 11)
  ctx.globalAlpha = 1
}

function paintLine(ctx, scale, stride, losses, width, stroke, alpha) {
  ctx.strokeStyle = ctx.fillStyle = stroke
  ctx.lineWidth = width
  ctx.lineJoin = "round"
  ctx.globalAlpha = alpha
  ctx.beginPath()
  losses.forEach((loss, i) => ctx.lineTo(scale.x((i + 1) * stride), scale.y(loss)))
  ctx.stroke()
  if (losses.length === 1) ctx.fillRect(scale.x(stride) - 1, scale.y(losses[0]) - 1, 2, 2) // no line yet
  ctx.globalAlpha = 1
}

function paintMiddle(ctx, width, height, text, colour) {
  ctx.textAlign = "center"
  ctx.textBaseline = "middle"
  ctx.fillStyle = colour.text
  ctx.globalAlpha = 0.75
  ctx.fillText(text, width / 2, height / 2, width - 16)
  ctx.globalAlpha = 1
}

function line(ctx, x1, y1, x2, y2) {
  ctx.beginPath()
  ctx.moveTo(x1, y1)
  ctx.lineTo(x2, y2)
  ctx.stroke()
}

// ---------------------------------------------------------------- page

function colours(element) {
  const style = getComputedStyle(element)
  return { text: style.color || "#ddd", line: style.getPropertyValue("--zoodip-line") || "#5fb4ff" }
}

/** Whether a text's colour is a dark one, so that what it stands on is light. Palettes are in sRGB. */
function isDark(colour) {
  const [red, green, blue] = (colour.match(/^rgba?\((.*)\)$/)?.[1] ?? "255, 255, 255").split(/[\s,]+/).map(Number)
  return 0.3 * red + 0.6 * green + 0.1 * blue < 128
}

function make(tag, name, ...children) {
  const element = document.createElement(tag)
  if (name) element.className = name
  element.append(...children) // strings become text, never markup
  return element
}

function addStyle() {
  if (document.getElementById("zoodip-style")) return
  const style = make("style", "", STYLE)
  style.id = "zoodip-style"
  document.head.append(style)
}
