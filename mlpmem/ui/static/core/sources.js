// @ts-check
/* Which sources this page has at all. A memory or a datastore that no run on screen has, that the model does not have and
 * that no text of the visitor's brings is named nowhere: an element names in `data-needs` the sources without which it is hidden. */
import { page } from "./state.js";

const OPTIONAL = /** @type {const} */ (["memory", "knn"]);

/** The sources that this page lacks. @type {Set<string>} */
export const lacking = new Set();

/** @param {"memory" | "knn"} source */
const isThere = (source) => page.views.some((view) => view.usual?.includes(source) || view.panes.has(source)) ||
  Boolean(page.status.chat?.systems.includes(source)) || (source === "knn" && document.body.hasAttribute("data-own"));

const look = () => {
  if (!page.views.length) return; // nothing is known yet
  lacking.clear();
  for (const source of OPTIONAL) if (!isThere(source)) lacking.add(source);
  document.body.dataset.lacks = [...lacking].join(" ");
};

/** Keeps the page's attribute up to date. */
export const watchSources = () => {
  page.on("status", look);
  page.on("view", look);
  new MutationObserver(look).observe(document.body, { attributeFilter: ["data-own"] });
};
