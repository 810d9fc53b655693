// @ts-check
/* The tabs Inspect and Your text. */
/** @import { Desk } from "./desk.js" */
import { inside } from "../core/dom.js";
import { page } from "../core/state.js";
import { mountOwn } from "../tabs/corpus.js";
import { inspectText, mountInspect } from "../tabs/inspect.js";
import { at } from "./desk.js";
import { Slot, packed } from "./slot.js";

/** @param {Desk} desk */
export const mountInspectTab = (desk) => {
  const slot = new Slot(packed(null), { example: desk.values.text, chat: Boolean(desk.values.live?.chats) });
  mountInspect(at("inspect-view"), slot.props, slot.watch);
  const box = /** @type {HTMLTextAreaElement} */ (inside(at("inspect-text"), "textarea"));
  const special = /** @type {HTMLInputElement} */ (inside(at("inspect-special"), "input"));
  /** @type {number | null} */
  let job = null;
  at("inspect-score").addEventListener("click", () => {
    job = desk.ask({ kind: "inspect", text: box.value, ids: box.value === page.brought.text ? page.brought.ids : [], lmbda: page.lambda, own: Boolean(desk.own), special: special.checked }, (value) =>
      slot.set(packed(value.kind === "begin" ? { ...value, own: desk.own } : value)));
  });
  at("inspect-stop").addEventListener("click", () => desk.door?.stop(job));
  page.inspect = inspectText;
};

/** changed() is called when the visitor's own text comes or goes. @param {Desk} desk @param {() => void} changed */
export const mountOwnTab = (desk, changed) => {
  const slot = new Slot(packed(null));
  mountOwn(at("own-view"), slot.props, slot.watch);
  const box = /** @type {HTMLTextAreaElement} */ (inside(at("own-text"), "textarea"));
  /** @type {number | null} */
  let job = null;
  /** The value of the text that is kept. @type {object | null} */
  let kept = null;
  at("own-make").addEventListener("click", () => {
    job = desk.ask({ kind: "own", text: box.value }, (value) => {
      if (value.kind === "ready") {
        kept = value;
        desk.own = value.run;
        changed();
      }
      slot.set(packed(value));
    });
  });
  at("own-stop").addEventListener("click", () => {
    desk.door?.stop(job);
    slot.set(packed(kept ?? { kind: "gone", stopped: "yes" }));
  });
  at("own-delete").addEventListener("click", () => {
    kept = null;
    desk.own = "";
    box.value = "";
    desk.ask({ kind: "forget" }, (value) => slot.set(packed(value)));
    changed();
  });
};
