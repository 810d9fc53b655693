// @ts-check
/* A conversation outside this browser: as a file with its tokens, and as a link with its questions. Plain values, without DOM.
 *
 * A link has the questions, who answered and the settings, in the part of the address that is never sent to a server; the
 * answers are written again where it is opened. */
/** @import { Conversation, Lambda } from "../../core/types.js" */
/** @import { Sampling, Turn } from "../types.js" */
import { shownOf } from "./talk.js";

const SYSTEMS = ["lm", "memory", "knn"];
const NUMBERS = /** @type {const} */ (["temperature", "top_p", "min_p", "repetition_penalty", "longest", "seed"]);
const MOST_TURNS = 20;
const MOST_QUESTION = 2000; // characters; the server checks them again
const LONGEST = 8000; // characters of a link that every messenger keeps
const MOST_FILE = 20e6; // characters of a file
const NAME = "#chat=";

/** @typedef {{ turns: { question: string, systems: string[] }[], settings: Partial<Sampling>, lmbda: Lambda | null }} Linked */

/** The turns on screen as a file has them: the last ones that fit into it.
 * @type {(turns: Turn[], lmbda: number | null, most?: number) => Conversation} */
export const recordOf = (turns, lmbda, most = MOST_FILE) => {
  const rows = turns.map(({ question, own, about, answers }) => {
    const shown = Object.entries(answers).flatMap(([system, versions]) => {
      const answer = shownOf(versions);
      return answer?.trace.steps.length ? [[system, answer.trace]] : [];
    });
    const right = about.answer ? [about.answer, ...(about.aliases ?? [])] : [];
    return { question, ...(own ? { own: /** @type {const} */ (true) } : {}), ...(right.length ? { right } : {}), traces: Object.fromEntries(shown) };
  });
  let size = 0;
  const sizes = rows.map((row) => JSON.stringify(row).length);
  let first = rows.length;
  while (first > 0 && size + sizes[first - 1] <= most) {
    first -= 1;
    size += sizes[first];
  }
  return { v: 1, kind: "chat", lmbda, left: first, turns: rows.slice(first) };
};

/** The fragment of a link to a conversation, null if it is too long for one.
 * @type {(turns: Turn[], lmbda: Lambda | null) => string | null} */
export const fragmentOf = (turns, lmbda) => {
  const [last] = Object.values(turns[turns.length - 1]?.answers ?? {}).flatMap((versions) => shownOf(versions) ?? []);
  const rows = turns.map(({ question, answers }) => [question, ...Object.keys(answers)]);
  const fragment = NAME + encodeURIComponent(JSON.stringify({ v: 1, turns: rows, settings: last?.asked ?? {}, lmbda }));
  return rows.length > MOST_TURNS || fragment.length > LONGEST ? null : fragment;
};

/** What a fragment asks, null if it is no link to a conversation. It may come from anybody: only known fields of the right
 * type are read. @type {(hash: string) => Linked | null} */
export const readFragment = (hash) => {
  if (!hash.startsWith(NAME)) return null;
  /** @type {any} */
  let value;
  try {
    value = JSON.parse(decodeURIComponent(hash.slice(NAME.length)));
  } catch {
    return null;
  }
  if (value?.v !== 1 || !Array.isArray(value.turns)) return null;
  const turns = value.turns.slice(0, MOST_TURNS).flatMap((/** @type {any} */ row) => {
    const [question, ...names] = Array.isArray(row) ? row : [];
    if (typeof question !== "string" || !question.trim()) return [];
    return [{ question: question.slice(0, MOST_QUESTION), systems: SYSTEMS.filter((system) => names.includes(system)) }];
  });
  if (!turns.length) return null;
  const { settings = {}, lmbda = null } = value;
  /** @type {Partial<Sampling>} */
  const known = {};
  for (const name of NUMBERS) if (Number.isFinite(settings?.[name])) known[name] = settings[name];
  if (typeof settings?.system === "string") known.system = settings.system.slice(0, MOST_QUESTION);
  if (Array.isArray(settings?.stop)) known.stop = settings.stop.filter((/** @type {any} */ one) => typeof one === "string").slice(0, 8);
  const isShare = Number.isFinite(lmbda) && lmbda >= 0 && lmbda <= 1;
  return { turns, settings: known, lmbda: isShare || lmbda === "auto" ? lmbda : null };
};
