// @ts-check
/* The conversation in this browser's own database, so that it survives a reload. It is never sent to be kept elsewhere.
 * A kept token has about 3 kB: its candidates and neighbours. */
/** @import { Turn } from "../types.js" */

const NAME = `mlpmem-chat ${window.location.pathname}`; // a model of a page has a path of its own
const TURNS = "turns";
const MORE = "more"; // settings and columns, by name

/** @template T @param {IDBRequest<T>} request @returns {Promise<T>} */
const done = (request) => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

export class Keep {
  constructor() {
    /** The bytes of each kept turn. @type {Map<string, number>} */
    this.sizes = new Map();
    /** Null where the browser keeps nothing, such as in a private window. @type {Promise<IDBDatabase | null>} */
    this.base = this.#open().catch(() => null);
  }

  /** @returns {Promise<IDBDatabase>} */
  #open() {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore(TURNS, { keyPath: "id" });
      request.result.createObjectStore(MORE);
    };
    return done(request);
  }

  /** @param {string} store @param {IDBTransactionMode} mode */
  async #store(store, mode) {
    const base = await this.base;
    return base?.transaction(store, mode).objectStore(store) ?? null;
  }

  /** What was kept: turns, and the values by name. @returns {Promise<{ turns: Turn[], more: { [name: string]: any } }>} */
  async load() {
    const turns = await this.#store(TURNS, "readonly");
    if (!turns) return { turns: [], more: {} };
    /** @type {{ id: string, size: number, turn: Turn }[]} */
    const rows = await done(turns.getAll());
    for (const { id, size } of rows) this.sizes.set(id, size);
    const store = await this.#store(MORE, "readonly");
    const [names, values] = store ? await Promise.all([done(store.getAllKeys()), done(store.getAll())]) : [[], []];
    return { turns: rows.map(({ turn }) => turn), more: Object.fromEntries(names.map((name, i) => [String(name), values[i]])) };
  }

  /** @param {Turn} turn */
  async save(turn) {
    const size = JSON.stringify(turn).length;
    this.sizes.set(turn.id, size);
    const store = await this.#store(TURNS, "readwrite");
    store?.put({ id: turn.id, size, turn: structuredClone(turn) });
    store?.transaction.commit(); // a page that is left drops what is not committed
  }

  /** @param {string} name @param {any} value */
  async note(name, value) {
    (await this.#store(MORE, "readwrite"))?.put(structuredClone(value), name);
  }

  /** Erases all turns; settings stay. */
  async erase() {
    this.sizes.clear();
    (await this.#store(TURNS, "readwrite"))?.clear();
  }

  /** The bytes of all kept turns. */
  get bytes() {
    return [...this.sizes.values()].reduce((sum, size) => sum + size, 0);
  }
}
