// @ts-check
/* A visitor's files and folders, by button or by drag: each is uploaded by itself, and named if it is left out. Also the
 * datastore that is saved. */
/** @import { Packed, Props, SavedStore, Watch } from "../core/types.js" */
import { h, inside, megabytes, quote, setText } from "../core/dom.js";
import { unpack } from "../core/state.js";

/** @typedef {{ file: File, name: string }} Chosen */
/** @typedef {{ files: number, file: number, all: number }} Most */
/** @typedef {{ send: (data: { files: { path: string, name: string }[] }) => void, save: () => void }} Sender */

const TRIES = 30; // of an upload that the server cannot take yet
const DEEP = 12; // folders within folders

/** Why files of the last choice were left out before they were sent. @type {string[]} */
let left = [];

/** The sentences on files that the last choice left out. */
export const leftOut = () => left;
/** Forgets them, as a pasted text comes. */
export const forgetLeft = () => { left = []; };

/** The files below an entry of a drag; hidden ones are left out. @param {FileSystemEntry | null} entry
 * @param {Chosen[]} found @param {number} most @param {number} depth @returns {Promise<void>} */
async function collect(entry, found, most, depth = 0) {
  if (!entry || entry.name.startsWith(".") || found.length > most) return;
  if (entry.isFile) {
    const file = await new Promise((done) => /** @type {FileSystemFileEntry} */ (entry).file(done, () => done(null)));
    if (file) found.push({ file, name: entry.fullPath.replace(/^\/+/, "") });
    return;
  }
  if (depth >= DEEP) return;
  const reader = /** @type {FileSystemDirectoryEntry} */ (entry).createReader();
  for (;;) { // a reader gives a hundred entries at once
    /** @type {FileSystemEntry[]} */
    const entries = await new Promise((done) => reader.readEntries(done, () => done([])));
    if (!entries.length || found.length > most) return;
    for (const inner of entries.sort((a, b) => a.name.localeCompare(b.name))) await collect(inner, found, most, depth + 1);
  }
}

/** How kinds can be read that cannot be now. @type {(absent: { [kind: string]: string }) => string} */
const howTo = (absent) => Object.entries(absent).map(([kind, command]) => `; ${kind} after ${command} where this page runs`).join("");

class Files {
  /** absent has, by kind, the command that installs its reader.
   * @param {HTMLElement} host @param {string[]} kinds @param {Most} most @param {{ [kind: string]: string }} absent
   * @param {Sender} sender */
  constructor(host, kinds, most, absent, sender) {
    this.absent = absent;
    this.kinds = kinds;
    this.most = most;
    this.sender = sender;
    this.busy = false;
    this.input = h("input", { type: "file", multiple: true, accept: kinds.join(","), hidden: true, tabindex: "-1",
      "aria-label": "Files", on: { change: () => this.#picked(this.input) } });
    this.folder = h("input", { type: "file", webkitdirectory: true, on: { change: () => this.#picked(this.folder) } });
    const folders = "webkitdirectory" in this.folder && matchMedia("(pointer: fine)").matches;
    this.line = h("span", { class: "files-line", role: "status" });
    this.hint = `${folders ? "or drop files and folders here: " : ""}${kinds.join(" ")}; up to ${most.files} files${howTo(absent)}`;
    host.replaceChildren(h("div", { class: "files-row" },
      h("button", { id: "own-upload", type: "button", class: "pane-tool", on: { click: () => this.input.click() } },
        "Choose files"),
      folders ? h("button", { id: "own-folder", type: "button", class: "pane-tool", on: { click: () => this.folder.click() } },
        "Choose a folder") : "",
      this.line, h("button", { id: "own-save", type: "button", class: "pane-tool",
        title: "As a .zip, to open it here or with --text", on: { click: () => this.#save() } }, "Save datastore"),
      this.input));
    setText(this.line, this.hint);
    this.#takeDrops(host.closest("[role=tabpanel]") ?? host, host);
  }

  /** @param {Element} area @param {HTMLElement} host */
  #takeDrops(area, host) {
    /** @type {(event: any) => boolean} */
    const has = ({ dataTransfer }) => [...(dataTransfer?.types ?? [])].includes("Files");
    for (const name of ["dragover", "dragleave", "drop"]) {
      area.addEventListener(name, (event) => {
        if (!has(event)) return;
        event.preventDefault();
        host.toggleAttribute("data-over", name === "dragover");
        if (name === "drop") this.#dropped(/** @type {DragEvent} */ (event).dataTransfer);
      });
    }
  }

  /** @param {DataTransfer | null} data */
  async #dropped(data) {
    /** @type {Chosen[]} */
    const found = [];
    const entries = [...(data?.items ?? [])].map((item) => item.webkitGetAsEntry()); // gone after the first wait
    const plain = [...(data?.files ?? [])].map((file) => ({ file, name: file.name }));
    for (const entry of entries) await collect(entry, found, 20 * this.most.files);
    this.#send(entries.some(Boolean) ? found : plain);
  }

  /** @param {HTMLInputElement} input */
  #picked(input) {
    const chosen = [...(input.files ?? [])].map((file) => ({ file, name: file.webkitRelativePath || file.name }));
    input.value = "";
    this.#send(chosen.filter(({ name }) => !name.split("/").some((part) => part.startsWith("."))));
  }

  /** The files that can be sent; the others are named. @param {Chosen[]} chosen */
  #fitting(chosen) {
    let size = 0;
    const fit = [];
    const other = new Map();
    for (const one of chosen) {
      const kind = (/\.[^./]+$/.exec(one.name) ?? [""])[0].toLowerCase();
      const { files, file, all } = this.most;
      if (!this.kinds.includes(kind)) other.set(kind || "no ending", (other.get(kind || "no ending") ?? 0) + 1);
      else if (one.file.size > file) left.push(`${one.name} has ${megabytes(one.file.size)}; at most ${megabytes(file)}.`);
      else if (fit.length >= files) left.push(`${one.name} is beyond the first ${files} files.`);
      else if (size + one.file.size > all) left.push(`${one.name} is beyond ${megabytes(all)} in all.`);
      else {
        fit.push(one);
        size += one.file.size;
      }
    }
    for (const [kind, count] of other) {
      const command = this.absent[kind];
      left.push(`${count} ${count > 1 ? "files" : "file"} of ${kind}, which ${command ? `needs ${command} where this page runs` : "is not read"}.`);
    }
    return fit;
  }

  /** @param {Chosen[]} chosen */
  async #send(chosen) {
    if (this.busy || document.body.hasAttribute("data-keying")) return;
    left = [];
    const fit = this.#fitting(chosen);
    this.busy = true;
    const files = [];
    for (const [i, { file, name }] of fit.entries()) {
      setText(this.line, `Uploading ${i + 1} of ${fit.length}: ${quote(name)} …`);
      try {
        files.push({ path: await this.#upload(file), name });
      } catch (error) {
        left.push(`${name} was not uploaded: ${error instanceof Error ? error.message : error}`);
      }
    }
    this.busy = false;
    const none = left.length ? `Nothing to read: ${left.slice(0, 5).join(" ")}` : this.hint;
    setText(this.line, files.length ? this.hint : none);
    if (files.length) this.sender.send({ files });
  }

  /** A file's path on the server; an Error with a sentence. @param {File} file @returns {Promise<string>} */
  async #upload(file) {
    for (let i = 0; ; i++) {
      const body = new FormData();
      body.append("files", file, file.name);
      const response = await fetch("gradio_api/upload", { method: "POST", body });
      if (response.ok) return (await response.json())[0];
      if (![429, 503].includes(response.status) || i >= TRIES) {
        throw new Error((await response.json().catch(() => ({}))).detail || `status ${response.status}`);
      }
      await new Promise((done) => window.setTimeout(done, 1000));
    }
  }

  #save() {
    setText(this.line, "Saving …");
    this.sender.save();
  }

  /** @param {SavedStore | null} value */
  receive(value) {
    if (!value) return;
    setText(this.line, value.kind === "message" ? value.text : this.hint);
    if (value.kind !== "saved") return;
    const bytes = Uint8Array.from(atob(value.data), (letter) => letter.charCodeAt(0));
    const url = URL.createObjectURL(new Blob([bytes], { type: "application/zip" }));
    const name = value.title.replace(/\.[^.]*$/, "").replace(/[^\p{L}\p{N} _-]+/gu, "-").slice(0, 60) || "text";
    h("a", { href: url, download: `${name} datastore.zip` }).click();
    window.setTimeout(() => URL.revokeObjectURL(url), 10_000);
  }
}

/** @type {(element: Element, props: Props<Packed, { kinds: string[], most: Most, absent: { [kind: string]: string } }>, watch: Watch, sender: Sender) => void} */
export const mountFiles = (element, props, watch, sender) => {
  const files = new Files(inside(element, ".files-host"), props.kinds, props.most, props.absent, sender);
  watch("value", () => files.receive(unpack(props.value)));
};
