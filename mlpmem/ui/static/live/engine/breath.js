// @ts-check
/* Giving way: a worker hears messages, such as Stop, only between macrotasks. */

const { port1: inlet, port2: outlet } = new MessageChannel();
/** @type {(() => void)[]} */
const waiting = [];
outlet.onmessage = () => waiting.shift()?.();

/** Waits for one macrotask; a timer would wait four milliseconds. @returns {Promise<void>} */
export const breathe = () => new Promise((resolve) => {
  waiting.push(resolve);
  inlet.postMessage(0);
});
