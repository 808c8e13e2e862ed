// ZOODiP's nodes on ComfyUI's page: the loss chart of ZO Train Token, the upload and the notes of
// Load Reference Images, the notes of Generate Preview, the captions of Caption Images.

import { app } from "../../scripts/app.js"
import { api } from "../../scripts/api.js"
import { compact, hasEnded, LossChart } from "./chart.js"
import { showNotes } from "./notes.js"
import { addUpload } from "./upload.js"

const OURS = "Zoodip" // what our nodes' names begin with
const TRAINER = "ZoodipTrainToken"
const LOADER = "ZoodipLoadReferenceImages"
const PREVIEW = "ZoodipGeneratePreview"
const CAPTIONER = "ZoodipCaptionImages"
const EVENT = "zoodip.step"
const EDGE = 10 // pixels around the chart
const NO_SIZE = [0, -4] // of a widget: the page adds 4 pixels
const KEPT = "zoodip_chart" // the node's property that a workflow's file keeps

const charts = new WeakMap() // of the nodes
// The last data for each node that is not there yet: a page loads slower than events come, and shows one of the
// workflows that are open.
const waiting = new Map()

app.registerExtension({
  name: "zoodip",

  setup() {
    api.addEventListener(EVENT, (event) => receive(event.detail))
  },

  nodeCreated(node) {
    if (node.comfyClass === TRAINER) addChart(node)
    if (node.comfyClass === LOADER) addUpload(node)
    if (node.comfyClass === LOADER || node.comfyClass === PREVIEW) addNotes(node)
    if (node.comfyClass === CAPTIONER) addNotes(node, true)
    if (node.comfyClass?.startsWith(OURS)) foldAdvanced(node)
  },

  afterConfigureGraph() {
    for (const data of waiting.values()) receive(data)
  },
})

function receive(data) {
  const graph = app.rootGraph ?? app.graph // the latter before frontend 1.30 or so
  const id = String(data.node)
  const key = `${data.workflow} ${id}`
  const node = isOf(graph, data) ? findNode(graph, id) : null
  if (!charts.has(node)) {
    waiting.set(key, data)
    return
  }
  waiting.delete(key)
  show(node, data)
}

/** Whether the data is of this workflow; what was queued by a script tells of none. */
const isOf = (graph, data) => !data.workflow || data.workflow === graph?.id

/** The node that the server calls "3", or "12:3" where it is number 3 in the subgraph of number 12. */
function findNode(graph, id) {
  const [first, ...rest] = id.split(":")
  const node = graph?.getNodeById(first) ?? graph?.getNodeById(Number(first))
  return rest.length ? findNode(node?.subgraph, rest.join(":")) : node
}

function addChart(node) {
  const chart = new LossChart()
  const widget = node.addDOMWidget("loss_chart", "zoodip_chart", chart.element, {
    serialize: false,
    hideOnZoom: false, // the node is tall, so it is mostly seen zoomed out
    margin: EDGE,
    getMinHeight: () => chart.minHeight() + 2 * EDGE,
    onDraw: () => chart.refresh(),
  })
  widget.serialize = false // the option is about prompts, this about the workflow's file
  charts.set(node, chart)
  after(node, "onConfigure", () => chart.show(node.properties[KEPT] ?? null))
  after(node, "onExecuted", (message) => {
    if (!message?.zoodip) return
    show(node, message.zoodip[0])
    dropPreview(node)
  })
  after(node, "onRemoved", () => chart.remove())
}

function addNotes(node, plain = false) {
  after(node, "onExecuted", (message) => showNotes(node, (message?.text ?? []).map(String), plain))
}

/**
 * Have the page show a node's images: it prefers the last live preview to them for as long as it has one, and Nodes 2.0
 * shows that twice. The newer pages' own store drops it at once, to which there is no public way.
 */
function dropPreview(node) {
  const graph = node.graph
  const place = !graph || graph === graph.rootGraph ? String(node.id) : `${graph.id}:${node.id}`
  const stores = document.getElementById("vue-app")?.__vue_app__?.config?.globalProperties?.$pinia?._s
  const store = stores?.get("nodeOutput")
  if (store?.revokePreviewsByLocatorId) store.revokePreviewsByLocatorId(place)
  else delete app.nodePreviewImages?.[place]
}

function show(node, data) {
  charts.get(node).show(data)
  node.setDirtyCanvas(true, true) // the text may need more room
  if (hasEnded(data)) keep(node, compact(data))
}

/** Keep how a run ended with the node, so that a page loaded anew shows it again. */
function keep(node, data) {
  if (JSON.stringify(node.properties[KEPT]) === JSON.stringify(data)) return
  if (app.extensionManager?.queueSettings?.mode === "change") return // it would queue the next run for this change
  app.canvas.emitBeforeChange() // ComfyUI stores the page's state only after what it takes for a change
  node.setProperty(KEPT, data)
  app.canvas.emitAfterChange()
}

/**
 * Keep advanced inputs out of sight until the node's menu shows them. Nodes 2.0 does it by itself; the classic drawing
 * has the menu, but neither tells its widgets that they are advanced nor closes the gap where they would stand.
 */
function foldAdvanced(node) {
  const widgets = (node.widgets ?? []).filter((widget) => widget.options?.advanced)
  for (const widget of widgets) {
    const isLinked = () => node.inputs?.some((input) => input.widget?.name === widget.name && input.link != null)
    const isFolded = () => !node.showAdvanced && !isLinked()
    let computeSize = widget.computeSize
    Object.defineProperties(widget, {
      advanced: { get: () => !isLinked(), set() {}, enumerable: false }, // a widget in a subgraph's own is a copy
      computeSize: {
        get: () => (isFolded() ? () => NO_SIZE : computeSize),
        set: (value) => (computeSize = value),
        enumerable: false,
      },
    })
  }
  if (widgets.length) node.setSize([node.size[0], node.computeSize()[1]])
}

/** Call `extra` after a node's method, with the same arguments. */
function after(node, method, extra) {
  const original = node[method]
  node[method] = function (...args) {
    const result = original?.apply(this, args)
    extra(...args)
    return result
  }
}
