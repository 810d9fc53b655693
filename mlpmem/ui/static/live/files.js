// @ts-check
/* A model's files: from the browser's cache or the site, in parts, with progress, and checked by their hashes. */
/** @import { Listed, Live } from "./types.js" */
import { LiveError, must } from "./model/errors.js";

const CACHE = "mlpmem-model-";

/** Told the bytes so far, of how many. @typedef {(loaded: number, total: number) => void} Tell */

/** The files of a model by name, and whether they are kept for the next visit. @param {Live} live @param {string} base address @param {Tell} tell
 * @returns {Promise<{ files: Map<string, Uint8Array>, kept: boolean }>} */
export async function fetched(live, base, tell) {
  must(globalThis.crypto?.subtle !== undefined, "This address is not secure, so the model's files cannot be checked here. Open the page by https.");
  const cache = await opened(live.version);
  const total = Object.values(live.files).reduce((sum, file) => sum + file.bytes, 0);
  let loaded = 0;
  /** @param {number} bytes */
  const told = (bytes) => {
    loaded += bytes;
    tell(loaded, total);
  };
  /** @type {Map<string, Uint8Array>} */
  const files = new Map();
  let kept = cache !== null;
  for (const [name, listed] of Object.entries(live.files)) {
    const before = loaded;
    let data = cache ? await fromCache(cache, name, listed, base, told) : null;
    if (!data) {
      loaded = before;
      data = await fromSite(name, listed, base, told);
      kept = (await keep(cache, listed, base, data)) && kept;
    }
    files.set(name, data);
  }
  return { files, kept };
}

/** The browser's cache of this version, null without one; other versions are deleted. @param {string} version @returns {Promise<Cache | null>} */
async function opened(version) {
  try {
    for (const name of await caches.keys()) if (name.startsWith(CACHE) && name !== CACHE + version) await caches.delete(name);
    return await caches.open(CACHE + version);
  } catch {
    return null;
  }
}

/** @param {Cache} cache @param {string} name @param {Listed} listed @param {string} base @param {(bytes: number) => void} told */
async function fromCache(cache, name, listed, base, told) {
  try {
    const responses = await Promise.all(listed.parts.map((part) => cache.match(new URL(part, base))));
    if (responses.includes(undefined)) return null;
    return await checked(name, listed, /** @type {Response[]} */ (responses), told);
  } catch {
    return null; // damaged: loaded again
  }
}

/** @param {string} name @param {Listed} listed @param {string} base @param {(bytes: number) => void} told */
function fromSite(name, listed, base, told) {
  return checked(name, listed, responsesOf(name, listed, base), told);
}

/** Yields the responses of a file's parts; the next part is asked for when one has been read, as connections are few.
 * @param {string} name @param {Listed} listed @param {string} base */
const responsesOf = async function* (name, listed, base) {
  for (const part of listed.parts) {
    /** @type {Response} */
    let response;
    try {
      response = await fetch(new URL(part, base), { credentials: "same-origin" });
    } catch {
      throw new LiveError(`${name} could not be loaded; the connection failed. Reload the page to try again.`);
    }
    must(response.ok, `${name} could not be loaded (status ${response.status}). Reload the page, or build the folder again.`);
    yield response;
  }
};

/** The bytes of a file's parts; throws a LiveError unless they have the listed size and hash.
 * @param {string} name @param {Listed} listed @param {Iterable<Response> | AsyncIterable<Response>} responses @param {(bytes: number) => void} told */
async function checked(name, { bytes, sha256 }, responses, told) {
  const data = room(bytes);
  let at = 0;
  for await (const response of responses) {
    for await (const chunk of chunksOf(response, name)) {
      must(at + chunk.length <= bytes, `${name} is altered: it is longer than ${bytes.toLocaleString("en")} bytes. Build the folder again.`);
      data.set(chunk, at);
      at += chunk.length;
      told(chunk.length);
    }
  }
  must(at === bytes, `${name} is truncated: ${at.toLocaleString("en")} of ${bytes.toLocaleString("en")} bytes. Reload the page.`);
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", data));
  const hash = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  must(hash === sha256, `${name} is altered: its hash is not the listed one. Reload the page, or build the folder again.`);
  return data;
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

/** Whether a file's parts are in the cache now; a full storage is no error.
 * @param {Cache | null} cache @param {Listed} listed @param {string} base @param {Uint8Array<ArrayBuffer>} data */
async function keep(cache, { bytes, parts }, base, data) {
  try {
    const size = Math.ceil(bytes / parts.length);
    for (const [i, part] of parts.entries()) await cache?.put(new URL(part, base), new Response(data.subarray(i * size, (i + 1) * size)));
    return cache !== null;
  } catch {
    return false;
  }
}
