// @ts-check
/* The geometry of the pipes: pure functions from boxes to SVG paths. A band is a pipe with a width at
 * each end; it runs to the right, or downwards in a narrow circuit. */

/** @typedef {{ x: number, y: number, w: number, h: number }} Box */
/** A band's end: along is the coordinate in the direction of flow, across its centre line.
 * @typedef {{ along: number, across: number, width: number }} End */

/** @type {(value: number) => string} */
const n = (value) => value.toFixed(1);

/** The path of a band between two ends; `down` turns it by a right angle.
 * @type {(from: End, to: End, down: boolean) => string} */
export const band = (from, to, down) => {
  const middle = (from.along + to.along) / 2;
  /** @type {(along: number, across: number) => string} */
  const at = (along, across) => (down ? `${n(across)} ${n(along)}` : `${n(along)} ${n(across)}`);
  const [a, b] = [from.width / 2, to.width / 2];
  return `M${at(from.along, from.across - a)}` +
    `C${at(middle, from.across - a)} ${at(middle, to.across - b)} ${at(to.along, to.across - b)}` +
    `L${at(to.along, to.across + b)}` +
    `C${at(middle, to.across + b)} ${at(middle, from.across + a)} ${at(from.along, from.across + a)}Z`;
};

/** The centre line of a band, along which a pulse runs. @type {(from: End, to: End, down: boolean) => string} */
export const line = (from, to, down) => {
  const middle = (from.along + to.along) / 2;
  /** @type {(along: number, across: number) => string} */
  const at = (along, across) => (down ? `${n(across)} ${n(along)}` : `${n(along)} ${n(across)}`);
  return `M${at(from.along, from.across)}C${at(middle, from.across)} ${at(middle, to.across)} ${at(to.along, to.across)}`;
};

/** Where a band leaves a box. @type {(box: Box, down: boolean, width: number, shift?: number) => End} */
export const outOf = (box, down, width, shift = 0) => (down
  ? { along: box.y + box.h, across: box.x + box.w / 2 + shift, width }
  : { along: box.x + box.w, across: box.y + box.h / 2 + shift, width });

/** Where a band enters a box. @type {(box: Box, down: boolean, width: number, shift?: number) => End} */
export const into = (box, down, width, shift = 0) => (down
  ? { along: box.y, across: box.x + box.w / 2 + shift, width }
  : { along: box.x, across: box.y + box.h / 2 + shift, width });

/** The centres of stacked bands, relative to the middle of the stack.
 * @type {(widths: number[]) => number[]} */
export const stacked = (widths) => {
  let at = -widths.reduce((sum, width) => sum + width, 0) / 2;
  return widths.map((width) => {
    at += width;
    return at - width / 2;
  });
};
