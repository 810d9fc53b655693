// @ts-check
/* A model's files: from the browser's cache or the site, in parts, with progress, and checked by their hashes. */
/** @import { Listed, Live } from "./types.js" */
import { LiveError, must } from "./model/errors.js";

const CACHE = "mlpmem-model-";

/** Told the bytes so far, of how many. @typedef {(loaded: number, total: number) => void} Tell */

/** The files of a model by name, and whether they are kept for the next visit. A file is read part by part through one buffer, which
 * hashing and caching see: the file's own is then freed as soon as the model has read it, without waiting for a collection.
 * @param {Live} live @param {string} base address @param {Tell} tell
 * @returns {Promise<{ files: Map<string, Uint8Array>, kept: boolean }>} */
export async function fetched(live, base, tell) {
  must(globalThis.crypto?.subtle !== undefined, "This address is not secure, so the model's files cannot be checked here. Open the page by https.");
  const cache = await opened(live.version);
  const listed = Object.entries(live.files);
  const total = listed.reduce((sum, [, file]) => sum + file.bytes, 0);
  const buffer = room(listed.reduce((most, [, { bytes, size }]) => Math.max(most, Math.min(bytes, size)), 0));
  let loaded = 0;
  let kept = cache !== null;
  /** @type {Map<string, Uint8Array>} */
  const files = new Map();
  for (const [name, file] of listed) {
    const data = room(file.bytes);
    for (const part of partsOf(name, file, base)) {
      const target = buffer.subarray(0, part.bytes);
      const before = loaded;
      /** @param {number} bytes */
      const told = (bytes) => {
        loaded += bytes;
        tell(loaded, total);
      };
      if (!cache || !(await fromCache(cache, part, target, told))) {
        loaded = before;
        await fromSite(part, target, told);
        kept = (await keep(cache, part, target)) && kept;
      }
      data.set(target, part.start);
    }
    files.set(name, data);
  }
  return { files, kept };
}

/** A part of a file: its address, place and hash, and the file's name and size for messages.
 * @typedef {{ name: string, url: URL, start: number, bytes: number, hash: string, whole: number }} Part */

/** @param {string} name @param {Listed} listed @param {string} base @returns {Part[]} */
const partsOf = (name, { bytes, size, parts, hashes }, base) => parts.map((part, i) => ({ name, url: new URL(part, base),
  start: i * size, bytes: Math.min(size, bytes - i * size), hash: hashes[i], whole: bytes }));

/** The browser's cache of this version, null without one; other versions are deleted. @param {string} version @returns {Promise<Cache | null>} */
async function opened(version) {
  try {
    for (const name of await caches.keys()) if (name.startsWith(CACHE) && name !== CACHE + version) await caches.delete(name);
    return await caches.open(CACHE + version);
  } catch {
    return null;
  }
}

/** Whether the cache has a part, which is then in target. @param {Cache} cache @param {Part} part @param {Uint8Array<ArrayBuffer>} target
 * @param {(bytes: number) => void} told */
async function fromCache(cache, part, target, told) {
  try {
    const response = await cache.match(part.url);
    if (!response) return false;
    await checked(part, response, target, told);
    return true;
  } catch {
    return false; // damaged: loaded again
  }
}

/** @param {Part} part @param {Uint8Array<ArrayBuffer>} target @param {(bytes: number) => void} told */
async function fromSite(part, target, told) {
  /** @type {Response} */
  let response;
  try {
    response = await fetch(part.url, { credentials: "same-origin" });
  } catch {
    throw new LiveError(`${part.name} could not be loaded; the connection failed. Reload the page to try again.`);
  }
  must(response.ok, `${part.name} could not be loaded (status ${response.status}). Reload the page, or build the folder again.`);
  await checked(part, response, target, told);
}

/** Fills target with a part's bytes; throws a LiveError unless they have the listed size and hash.
 * @param {Part} part @param {Response} response @param {Uint8Array<ArrayBuffer>} target @param {(bytes: number) => void} told */
async function checked({ name, start, bytes, hash, whole }, response, target, told) {
  let at = 0;
  for await (const chunk of chunksOf(response, name)) {
    must(at + chunk.length <= bytes, `${name} is altered: it is longer than ${whole.toLocaleString("en")} bytes. Build the folder again.`);
    target.set(chunk, at);
    at += chunk.length;
    told(chunk.length);
  }
  must(at === bytes, `${name} is truncated: ${(start + at).toLocaleString("en")} of ${whole.toLocaleString("en")} bytes. Reload the page.`);
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", target));
  const found = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  must(found === hash, `${name} is altered: its hash is not the listed one. Reload the page, or build the folder again.`);
}

/** @param {number} bytes */
function room(bytes) {
  try {
    return new Uint8Array(bytes);
  } catch {
    throw new LiveError(`This device has no ${Math.ceil(bytes / 1e6)} MB of memory left for the model.`);
  }
}

/** A response's bytes as they come. @param {Response} response @param {string} name */
const chunksOf = async function* (response, name) {
  const reader = response.body?.getReader();
  while (reader) {
    /** @type {ReadableStreamReadResult<Uint8Array>} */
    let next;
    try {
      next = await reader.read();
    } catch {
      throw new LiveError(`${name} could not be loaded; the connection broke. Reload the page to try again.`);
    }
    if (next.done) return;
    yield next.value;
  }
};

/** Whether a part is in the cache now; a full storage is no error. @param {Cache | null} cache @param {Part} part @param {Uint8Array<ArrayBuffer>} data */
async function keep(cache, { url }, data) {
  try {
    await cache?.put(url, new Response(data));
    return cache !== null;
  } catch {
    return false;
  }
}
