// Uploading reference images: a button on the node, and dropping files onto it.

import { app } from "../../scripts/app.js"
import { api } from "../../scripts/api.js"

const PICTURES = [".png", ".jpg", ".jpeg", ".webp"] // as zoodip_core.data.images.SUFFIXES
const CAPTIONS = [".txt", ".json"]
const PARENT = "zoodip" // in ComfyUI's input folder

/** Let a Load Reference Images node upload files into a new folder, and choose that. */
export function addUpload(node) {
  const input = Object.assign(document.createElement("input"), {
    type: "file",
    multiple: true,
    accept: ["image/*", ...CAPTIONS].join(),
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
    const files = [...(event.dataTransfer?.files ?? [])]
    if (files.length) take(files)
    return files.length > 0
  }
}

async function uploadInto(node, button, chosen) {
  const files = chosen.filter((file) => [...PICTURES, ...CAPTIONS].includes(suffix(file)))
  const left = chosen.filter((file) => !files.includes(file)).map((file) => file.name)
  const first = files.find((file) => PICTURES.includes(suffix(file)))
  if (!first) return tell("error", "Nothing to upload", `Choose pictures: ${PICTURES.join(", ")}.`)
  if (button.disabled) return tell("warn", "An upload is under way", "Wait until it has ended.")
  const folder = `${PARENT}/${folderName(first)}`

  button.disabled = true
  try {
    for (const [done, file] of files.entries()) {
      label(node, button, `uploading ${done + 1} of ${files.length}`)
      await upload(file, folder)
    }
    choose(node, folder)
    if (left.length) tell("warn", "Left out", `${left.join(", ")}: only ${PICTURES.join(", ")} can be read.`)
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

const suffix = (file) => file.name.slice(file.name.lastIndexOf(".")).toLowerCase()

/** A new folder's name: the file's, as far as any file system takes it, and the time. */
function folderName(file) {
  const stem = file.name.slice(0, file.name.lastIndexOf("."))
  const plain = stem.replace(/[^\p{L}\p{N}_-]+/gu, "-").replace(/^-+|-+$/g, "").slice(0, 40)
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
