// Uploading reference images: a button on the node, and dropping files onto it.

import { app } from "../../scripts/app.js"
import { api } from "../../scripts/api.js"

// As zoodip_core.data.kinds.SUFFIXES. What a picture is follows from its content, which the node looks at.
const PICTURES = [
  ...[".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif", ".avif"],
  ...[".heic", ".heif", ".hif"],
]
const CAPTIONS = [".txt", ".caption", ".json", ".jsonl"]
const MOST_BYTES = 100_000_000 // as zoodip_core.data.images.MAX_FILE_BYTES
const PARENT = "zoodip" // in ComfyUI's input folder

/** Let a Load Reference Images node upload files into a new folder, and choose that. */
export function addUpload(node) {
  const input = Object.assign(document.createElement("input"), {
    type: "file",
    multiple: true,
    accept: ["image/*", ...PICTURES, ...CAPTIONS].join(),
  })
  const button = node.addWidget("button", "upload pictures", null, () => input.click(), { serialize: false })
  button.serialize = false
  const take = (files) => uploadInto(node, button, files)

  input.onchange = () => {
    const files = [...input.files]
    input.value = "" // so that the same files can be chosen again
    take(files)
  }
  node.onDragOver = (event) => [...(event.dataTransfer?.items ?? [])].some((item) => item.kind === "file")
  node.onDragDrop = (event) => {
    if (!event.dataTransfer?.files.length) return false
    filesOf(event.dataTransfer).then(take, (error) => tell("error", "Upload failed", error.message))
    return true
  }
}

/** What was dropped; in a folder's place the files in it, but not those of folders within. */
async function filesOf(dropped) {
  const items = [...dropped.items].filter((item) => item.kind === "file")
  const known = items.map((item) => ({ file: item.getAsFile(), entry: item.webkitGetAsEntry?.() })) // gone after the event
  const found = await Promise.all(known.map(({ file, entry }) => (entry?.isDirectory ? filesIn(entry) : [file])))
  return found.flat()
}

async function filesIn(folder) {
  const reader = folder.createReader()
  const entries = []
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)) // some at a time, at last none
    if (!some.length) break
    entries.push(...some)
  }
  const files = entries.filter((entry) => entry.isFile).sort((a, b) => a.name.localeCompare(b.name))
  return Promise.all(files.map((entry) => new Promise((resolve, reject) => entry.file(resolve, reject))))
}

async function uploadInto(node, button, chosen) {
  const files = chosen.filter((file) => mayBePicture(file) || CAPTIONS.includes(suffix(file)))
  const left = chosen.filter((file) => !files.includes(file)).map((file) => file.name)
  const first = files.find(mayBePicture)
  if (!first) return tell("error", "Nothing to upload", "Choose pictures, such as JPEG, PNG, WebP or HEIC.")
  if (button.disabled) return tell("warn", "An upload is under way", "Wait until it has ended.")
  const folder = `${PARENT}/${folderName(first)}`

  button.disabled = true
  try {
    for (const [done, file] of files.entries()) {
      label(node, button, `uploading ${done + 1} of ${files.length}`)
      await upload(file, folder)
    }
    choose(node, folder)
    if (left.length) tell("warn", "Left out", `${left.length} no pictures and no captions: ${left.join(", ")}`)
  } catch (error) {
    tell("error", "Upload failed", error.message)
  } finally {
    button.disabled = false
    label(node, button, undefined)
  }
}

async function upload(file, folder) {
  const body = new FormData()
  body.append("image", file)
  body.append("type", "input")
  body.append("subfolder", folder)
  let answer
  try {
    answer = await api.fetchApi("/upload/image", { method: "POST", body })
  } catch (error) {
    throw new Error(`${file.name}: ComfyUI does not answer (${error.message})`)
  }
  if (answer.status === 413) throw new Error(`${file.name}: too large; start ComfyUI with --max-upload-size, in MB`)
  if (!answer.ok) throw new Error(`${file.name}: ComfyUI answered ${answer.status} ${answer.statusText}`)
}

function choose(node, folder) {
  const combo = node.widgets.find((widget) => widget.name === "folder")
  const known = combo.options.values
  // a new list: the old one belongs to all nodes of this type
  if (Array.isArray(known) && !known.includes(folder)) combo.options.values = [...known, folder]
  app.canvas.emitBeforeChange() // these two make it a change that can be undone, and that a reload keeps
  combo.value = folder
  combo.callback?.(folder)
  app.canvas.emitAfterChange()
}

function label(node, button, text) {
  button.label = text
  node.setDirtyCanvas(true, true)
}

// ---------------------------------------------------------------- names

const stem = (file) => (file.name.includes(".") ? file.name.slice(0, file.name.lastIndexOf(".")) : file.name)
const suffix = (file) => file.name.slice(stem(file).length).toLowerCase()

/** By its name, or by what the browser takes it for; of what it does not know the node sees. */
function mayBePicture(file) {
  if (PICTURES.includes(suffix(file)) || file.type.startsWith("image/")) return true
  const isUnknown = ["", "application/octet-stream"].includes(file.type) && !CAPTIONS.includes(suffix(file))
  return isUnknown && file.size <= MOST_BYTES
}

/** A new folder's name: the file's, as far as any file system takes it, and the time. */
function folderName(file) {
  const plain = stem(file).replace(/[^\p{L}\p{N}_-]+/gu, "-").replace(/^-+|-+$/g, "").slice(0, 40)
  const now = new Date()
  const local = new Date(now.getTime() - now.getTimezoneOffset() * 60_000).toISOString()
  return `${plain || "pictures"}-${local.slice(0, 19).replace(/[-:]/g, "").replace("T", "-")}`
}

function tell(severity, summary, detail) {
  const toast = app.extensionManager?.toast
  if (toast) return toast.add({ severity, summary, detail, life: severity === "error" ? undefined : 8000 })
  const text = document.createElement("p")
  text.textContent = `${summary}. ${detail}`
  app.ui.dialog.show(text)
}
