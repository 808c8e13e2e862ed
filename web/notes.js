// What a node tells in lines under its widgets: what it was given and did not use, or the texts that it has made.

const STYLE = `
.zoodip-notes { overflow: hidden; font: 11px/15px Inter, system-ui, sans-serif; user-select: text; }
.zoodip-notes .zoodip-warning { color: #f0b848; }
.zoodip-notes > div { overflow-wrap: anywhere; }
.zoodip-notes p { margin: 0; }
`
const EDGE = 10 // pixels around the lines

const notes = new WeakMap() // the box of lines of each node that had some

/** Show lines on a node, in place of those before; its widget is made when there is something to show. They are warnings
 * unless they are `plain`. */
export function showNotes(node, lines, plain = false) {
  if (!notes.has(node) && !lines.length) return
  if (!notes.has(node)) addBox(node)
  notes.get(node).replaceChildren(...lines.map((line) => (plain ? make("p", line) : warning(line))))
  node.setDirtyCanvas(true, true) // the node may need more room
}

function addBox(node) {
  addStyle()
  const box = make("div")
  const frame = make("div", box)
  frame.className = "zoodip-notes"
  const height = () => (box.childElementCount ? box.offsetHeight + 2 * EDGE : 0)
  const options = { serialize: false, hideOnZoom: false, margin: EDGE, getMinHeight: height, getMaxHeight: height }
  const widget = node.addDOMWidget("notes", "zoodip_notes", frame, options)
  widget.serialize = false // the option is about prompts, this about the workflow's file
  notes.set(node, box)
}

function warning(line) {
  const element = make("p", `⚠ ${line}`)
  element.className = "zoodip-warning"
  return element
}

function make(tag, ...children) {
  const element = document.createElement(tag)
  element.append(...children) // strings become text, never markup
  return element
}

function addStyle() {
  if (document.getElementById("zoodip-notes-style")) return
  const style = make("style", STYLE)
  style.id = "zoodip-notes-style"
  document.head.append(style)
}
