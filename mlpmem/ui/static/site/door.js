// @ts-check
/* The door to the worker: `ask` sends a plan, and its values come later, in order. Nothing leaves the browser. */
/** @import { Answer, Facts, Live, Plan, Said, Sent } from "../live/types.js" */

/** Told how loading goes: bytes so far, ready with facts, or lost for good with a reason.
 * @typedef {{ files: (loaded: number, total: number) => void, ready: (facts: Facts) => void, lost: (text: string) => void }} Told */

const DISK = "This page was opened from a disk, where browsers start no worker. Serve the folder (python -m http.server) to ask questions.";
const FAILED = "The model's worker has ended; perhaps this device ran out of memory. Reload the page to try again.";
const MISSING = "This browser starts no worker here.";

export class Door {
  /** @param {Live} live @param {Told} told */
  constructor(live, told) {
    this.told = told;
    this.count = 0; // jobs so far
    /** The receivers of running jobs. @type {Map<number, (value: Answer) => void>} */
    this.jobs = new Map();
    /** @type {Worker | null} */
    this.worker = null;
    window.setTimeout(() => this.#start(live)); // the page is there first
  }

  /** @param {Live} live */
  #start(live) {
    if (window.location.protocol === "file:") {
      this.told.lost(DISK);
      return;
    }
    try {
      this.worker = new Worker("worker.js");
    } catch {
      this.told.lost(MISSING);
      return;
    }
    this.worker.onmessage = ({ data }) => this.#hear(data);
    this.worker.onerror = () => this.#lose(FAILED);
    this.#send({ load: live });
  }

  /** @param {Sent} sent */
  #send(sent) {
    this.worker?.postMessage(sent);
  }

  /** @param {Said} said */
  #hear(said) {
    if (said.about === "files") this.told.files(said.loaded, said.total);
    else if (said.about === "ready") this.told.ready(said.facts);
    else if (said.about === "lost") this.#lose(said.text);
    else if (said.about === "value") this.jobs.get(said.job)?.(said.value);
    else this.jobs.delete(said.job);
  }

  /** Ends the worker; its running jobs get the reason. @param {string} text */
  #lose(text) {
    this.worker?.terminate();
    this.worker = null;
    const receivers = [...this.jobs.values()];
    this.jobs.clear();
    this.told.lost(text);
    for (const receive of receivers) receive({ kind: "message", run: "", text });
  }

  /** Sends a plan; `receive` gets its values. Returns the job's number.
   * @param {Plan} plan @param {(value: any) => void} receive */
  ask(plan, receive) {
    this.count += 1;
    const job = this.count;
    this.jobs.set(job, receive);
    this.#send({ job, plan });
    return job;
  }

  /** Ends a job; no value of it arrives any more. @param {number | null} job */
  stop(job) {
    if (job === null || !this.jobs.delete(job)) return;
    this.#send({ stop: job });
  }
}
