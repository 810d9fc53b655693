// @ts-check
/* What Gradio's components are to the page's scripts: a value that they read and watch. */
/** @import { Packed, Watch } from "../core/types.js" */

/** A value with its listeners and the component's other properties; `set` replaces the value. @template {object} [More=object] */
export class Slot {
  /** @param {any} value @param {More} [more] */
  constructor(value = null, more = /** @type {any} */ ({})) {
    /** @type {{ value: any } & More} */
    this.props = { value, ...more };
    /** @type {(() => void)[]} */
    this.listeners = [];
    /** @type {Watch} */
    this.watch = (_, listener) => { this.listeners.push(listener); };
  }

  /** @param {any} value */
  set(value) {
    this.props.value = value;
    for (const listener of this.listeners) listener();
  }
}

/** A value as one string, as Python sends it. @param {any} value @returns {Packed} */
export const packed = (value) => ({ json: JSON.stringify(value) });

let runs = 0;
/** A new id of a run. */
export const newRun = () => {
  runs += 1;
  return `live-${runs}`;
};
