// @ts-check
/* The small panels: status chip, progress line, example chips; figures are resized when shown. */
/** @import { Example, Props, Status, Watch } from "./types.js" */
import { watchAdmission } from "./admission.js";
import { h, inTab, inside, setText } from "./dom.js";
import { page } from "./state.js";

const GROUPS = [
  ["helps", "Memory helps"], ["hurts", "Memory hurts"],
  ["agree", "Both agree"], ["unknown", "Neither knows"], ["longer", "Longer texts"],
];

/** A group of examples as the page names it. @type {(group: string) => string} */
export const groupName = (group) => GROUPS.find(([name]) => name === group)?.[1] ?? "";

const ANSWERED = 1500; // milliseconds in which the server has answered the first poll

/** download() gets the file that the model lacks.
 * @type {(element: Element, props: Props<Status>, watch: Watch, download?: (() => void) | null) => void} */
export const mountStatus = (element, props, watch, download = null) => {
  const chip = h("span", { class: "chip" });
  const line = h("span", { class: "status-line" });
  const bar = h("i");
  const spoken = h("span", { class: "unseen", role: "status" }); // for screen readers, without percentages
  const progress = h("span", { class: "status-bar", "aria-hidden": "true" }, bar);
  const get = h("button", { type: "button", id: "download", class: "tool-button", hidden: true,
    on: { click: () => {
      get.hidden = true; // one click is one download
      download?.();
    } } });
  inside(element, ".status-host").replaceChildren(
    h("div", { class: "status-box" }, h("div", { class: "status-text" }, line, progress), get,
      chip, spoken));
  let known = !document.querySelector("gradio-app"); // the page's own value is from the server's start
  let refused = ""; // why the server does not admit this page
  const show = () => {
    const value = refused ? { ...page.status, state: "full", line: refused, ready: false, share: undefined }
      : props.value || page.status;
    chip.dataset.state = value.state;
    setText(chip, refused ? "no place" : known ? value.state || "loading" : "connecting");
    if (!known) chip.dataset.state = "";
    setText(line, known ? value.line || "" : "");
    const counts = Number.isFinite(value.share) && value.state === "loading";
    setText(spoken, counts ? (value.line || "").split(":")[0] : value.line || "");
    get.hidden = !(value.download && download);
    setText(get, value.download || "");
    progress.toggleAttribute("data-on", Number.isFinite(value.share));
    bar.style.width = `${100 * (value.share || 0)}%`;
    page.status = value;
    if (value.defaults) page.defaults = value.defaults;
    document.body.toggleAttribute("data-ready", Boolean(value.ready));
    page.emit("status", value);
  };
  const learned = () => { known = true; show(); };
  watch("value", learned);
  window.setTimeout(learned, ANSWERED); // a state that has not changed is not sent
  if (!known) watchAdmission((sentence) => { refused = `${sentence} This page then opens by itself.`; learned(); });
  show();
};

/** Plotly ignores window resizes while a figure is hidden, so one is sent when it is shown.
 * @type {(element: Element) => void} */
export const mountFigures = (element) => {
  let width = 0; // window width when these figures were last shown
  new ResizeObserver(() => {
    if (!element.getClientRects().length) return;
    if (width && width !== window.innerWidth) window.dispatchEvent(new Event("resize"));
    width = window.innerWidth;
  }).observe(element);
};

/** @type {(example: Example) => string} */
const label = (example) => {
  const text = example.prompt.replace(/^Question:\s*/, "").replace(/\s*Answer:\s*$/, "");
  return text.length > 46 ? `${text.slice(0, 44).trimEnd()}…` : text;
};

/** Opens the box in which the page is told facts. */
export const tellIt = () => inTab("Corpus", () => /** @type {HTMLElement | null} */ (document.querySelector(".teach-box"))).then((box) => box?.focus());

/** @type {(element: Element, props: Props<Example[], { surprises?: boolean, forgets?: boolean }>,
 *   trigger: (name: "pick", data: { index: any }) => void) => void} */
export const mountExamples = (element, props, trigger) => {
  const host = inside(element, ".examples-host");
  const examples = (props.value || []).map((example, index) => ({ ...example, index }));
  const groups = GROUPS.filter(([key]) => examples.some((e) => e.group === key));
  const surprise = props.surprises ? h("button", { type: "button", class: "surprise",
    title: "A question on an entity that the decoder never saw, in a held-out wording",
    on: { click: () => trigger("pick", { index: "surprise" }) } }, "Surprise me") : "";
  const forgets = props.forgets ? h("button", { type: "button", class: "surprise forgets",
    title: "A fact that the decoder knew: decoder only, with a memory, and fine-tuned on the new facts",
    on: { click: () => trigger("pick", { index: "forgets" }) } }, "What fine-tuning forgets") : "";
  const tells = page.local ? "" : h("button", { type: "button", class: "surprise tells",
    title: "The datastore knows it at once and cites it; then the memory can learn it", on: { click: tellIt } }, "Teach it a fact");
  if (!groups.length) return;
  const chips = h("div", { class: "chips", role: "group", "aria-label": "Examples" });
  const more = h("button", { type: "button", class: "icon-button more", "aria-label": "More examples",
    on: { click: () => chips.scrollBy({ left: 0.8 * chips.clientWidth, behavior: "smooth" }) } }, "›");
  const tabs = groups.map(([key, name]) => h("button", { type: "button", class: "group-button",
    "data-group": key, on: { click: () => show(key) } }, name));
  /** @type {(group: string) => void} */
  const show = (group) => {
    for (const tab of tabs) tab.setAttribute("aria-pressed", String(tab.dataset.group === group));
    chips.replaceChildren(...examples.filter((e) => e.group === group).map((e) =>
      h("button", { type: "button", class: "example", dir: "auto",
        on: { click: () => trigger("pick", { index: e.index }) } }, label(e))));
    chips.scrollLeft = 0;
    more.style.visibility = chips.scrollWidth > chips.clientWidth + 4 ? "" : "hidden";
  };
  host.toggleAttribute("data-wide", Boolean(forgets));
  host.replaceChildren(h("div", { class: "draws" }, surprise, forgets, tells), h("div", { class: "groups", role: "group",
    "aria-label": "Kinds of examples" }, tabs), chips, more);
  show(groups[0][0]);
};
