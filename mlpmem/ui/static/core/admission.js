// @ts-check
/* A page that the server has not admitted: an address has a bounded number of open pages, and so has the server. Gradio's
 * heartbeat stays open for an admitted page; where it was refused, the page says so and waits for a place. */

const HEARTBEAT = "/heartbeat/";
const AGAIN = 3000; // milliseconds between two attempts
const EARLY = 15000; // milliseconds in which a page is admitted; a heartbeat that ends later was a lost connection

/** Opens a heartbeat. Returns null once a page is admitted, else the server's sentence.
 * @type {(url: string) => Promise<string | null>} */
const refusal = async (url) => {
  const ends = new AbortController();
  try {
    const response = await fetch(url, { signal: ends.signal });
    if (![429, 503].includes(response.status)) return null;
    return String((await response.json()).detail ?? "");
  } catch {
    return null; // no connection: that is not a refusal
  } finally {
    ends.abort();
  }
};

/** Calls refused(sentence) while the server does not admit this page, and reloads the page once there is a place.
 * @param {(sentence: string) => void} refused */
export const watchAdmission = (refused) => {
  if (!("PerformanceObserver" in window)) return;
  /** @param {string} url */
  const wait = async (url) => {
    for (let isRefused = false; ; isRefused = true) {
      const sentence = await refusal(url);
      if (sentence === null) {
        if (isRefused) window.location.reload();
        return;
      }
      refused(sentence);
      await new Promise((done) => window.setTimeout(done, AGAIN));
    }
  };
  const observer = new PerformanceObserver((list) => { // it lists requests that have ended
    const ended = list.getEntries().find(({ name }) => name.includes(HEARTBEAT));
    if (!ended) return;
    observer.disconnect();
    if (ended.startTime + ended.duration < EARLY) wait(ended.name);
  });
  observer.observe({ type: "resource", buffered: true });
};
