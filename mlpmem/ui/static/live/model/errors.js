// @ts-check
/* The one error whose text a visitor sees: what was found, what is allowed, what to do. */

export class LiveError extends Error {}

/** Throws a LiveError with a text unless a condition holds. @type {(holds: boolean, text: string) => asserts holds} */
export function must(holds, text) {
  if (!holds) throw new LiveError(text);
}
