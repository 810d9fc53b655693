// @ts-check
/* A byte-level BPE tokenizer, read from tokenizer.json: text to token ids, and token ids to text. */
import { must } from "./errors.js";
import { Merges } from "./merges.js";

const OTHER = "This bundle's tokenizer is of a kind that the page cannot read";
/** Oniguruma's classes as JavaScript writes them; \s of JavaScript would also match U+FEFF. */
const CLASSES = { "\\s": "\\p{White_Space}", "\\S": "\\P{White_Space}", "\\d": "\\p{Nd}", "\\D": "\\P{Nd}" };
const GPT2 = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
const KNOWN = 10000; // pieces of text whose ids are kept

/** The character that spells each byte in a byte-level vocabulary: printable Latin-1 stands for itself. */
const ALPHABET = (() => {
  /** @type {(byte: number) => boolean} */
  const printable = (byte) => (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
  let moved = 0;
  return Array.from({ length: 256 }, (_, byte) => {
    if (printable(byte)) return String.fromCharCode(byte);
    moved += 1;
    return String.fromCharCode(255 + moved);
  });
})();
const BYTES = new Map(ALPHABET.map((character, byte) => [character, byte]));

/** A pattern of tokenizer.json as a regular expression; \x within brackets is translated alike.
 * @param {string} pattern */
function translated(pattern) {
  try {
    return new RegExp(pattern.replace(/\\\\|\\[sSdD]/g, (found) => /** @type {any} */ (CLASSES)[found] ?? found), "gu");
  } catch {
    must(false, `${OTHER}: the pattern ${pattern.slice(0, 60)}.`);
    return /./g;
  }
}

/** What cuts a text into pieces: patterns whose matches are pieces, and what lies between them too.
 * @param {any} spec @returns {RegExp[]} */
function patternsOf(spec) {
  const type = spec?.type;
  if (type === "Sequence") return spec.pretokenizers.flatMap(patternsOf);
  if (type === "Split" && spec.pattern?.Regex && spec.behavior === "Isolated" && !spec.invert) return [translated(spec.pattern.Regex)];
  if (type === "Digits") return [spec.individual_digits ? /\p{N}/gu : /\p{N}+/gu];
  must(type === "ByteLevel" && !spec.add_prefix_space, `${OTHER} (${type}).`);
  return spec.use_regex ?? true ? [translated(GPT2)] : []; // files of older versions do not say
}

/** @param {RegExp} pattern @param {string[]} pieces */
function cut(pattern, pieces) {
  return pieces.flatMap((piece) => {
    const parts = [];
    let end = 0;
    for (const match of piece.matchAll(pattern)) {
      if (!match[0]) continue;
      if (match.index > end) parts.push(piece.slice(end, match.index));
      parts.push(match[0]);
      end = match.index + match[0].length;
    }
    if (end < piece.length) parts.push(piece.slice(end));
    return parts;
  });
}

export class Tokenizer {
  /** Throws a LiveError for a tokenizer of another kind.
   * @param {any} file tokenizer.json @param {any} config tokenizer_config.json */
  constructor(file, config) {
    const { model, normalizer, pre_tokenizer: before, post_processor: after, added_tokens: added = [] } = file ?? {};
    must(model?.type === "BPE" && !normalizer && !model.dropout && !model.byte_fallback && !model.ignore_merges &&
      !model.continuing_subword_prefix && !model.end_of_word_suffix, `${OTHER} (${model?.type ?? "no model"}).`);
    must(added.every((/** @type {any} */ token) => !token.lstrip && !token.rstrip && !token.single_word),
      `${OTHER}: added tokens that take white space.`);
    this.patterns = patternsOf(before);
    this.merges = new Merges(model);
    /** @type {Map<string, number>} */
    this.added = new Map(added.map((/** @type {any} */ token) => [token.content, token.id]));
    /** @type {Set<number>} */
    this.special = new Set(added.filter((/** @type {any} */ token) => token.special).map((/** @type {any} */ token) => token.id));
    this.eos = this.#named(config?.eos_token);
    this.bos = this.#named(config?.bos_token);
    const [prefix, suffix] = templateOf(after);
    this.prefix = prefix;
    this.suffix = suffix;
    /** The bytes of every token. @type {Uint8Array[]} */
    this.bytes = [];
    for (const [piece, id] of [...Object.entries(model.vocab), ...this.added]) this.bytes[Number(id)] = bytesOf(piece, this.added);
    /** The displayable text of every token. */
    this.pieces = Array.from(this.bytes, (bytes) => decoded(bytes ?? new Uint8Array()));
    /** @type {Map<string, number[]>} */
    this.known = new Map();
    this.vocab = model.vocab;
    this.rules = model.merges;
  }

  /** @param {any} token a name, or an object with one @returns {number | null} */
  #named(token) {
    return this.added.get(token?.content ?? token) ?? null;
  }

  /** The token ids of a text, without BOS. Control tokens that it spells are text, unless `special`.
   * @param {string} text @param {boolean} [special] @returns {number[]} */
  encode(text, special = false) {
    const names = [...this.added].filter(([, id]) => special || !this.special.has(id)).map(([name]) => name);
    const whole = text.isWellFormed() ? text : text.toWellFormed();
    if (!names.length) return this.#plain(whole);
    const pattern = new RegExp(`(${names.sort((a, b) => b.length - a.length)
      .map((name) => name.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|")})`, "u");
    return whole.split(pattern).flatMap((part, i) => (i % 2 ? [/** @type {number} */ (this.added.get(part))] : this.#plain(part)));
  }

  /** The token ids of a prompt, with BOS where the tokenizer adds one.
   * @param {string} text @param {boolean} [special] */
  prompt(text, special = false) {
    const ids = [...this.prefix, ...this.encode(text, special), ...this.suffix];
    const twice = special && this.bos !== null && ids[0] === this.bos && ids[1] === this.bos;
    return twice ? ids.slice(1) : ids;
  }

  /** @param {string} text */
  #plain(text) {
    let pieces = text ? [text] : [];
    for (const pattern of this.patterns) pieces = cut(pattern, pieces);
    /** @type {number[]} */
    const ids = [];
    for (const piece of pieces) for (const id of this.#piece(piece)) ids.push(id);
    return ids;
  }

  /** @param {string} piece */
  #piece(piece) {
    const known = this.known.get(piece);
    if (known) return known;
    const ids = this.merges.apply(Array.from(new TextEncoder().encode(piece), (byte) => ALPHABET[byte]));
    if (this.known.size < KNOWN && piece.length < 64) this.known.set(piece, ids);
    return ids;
  }

  /** The text of token ids, without control tokens. @param {number[]} ids */
  decode(ids) {
    return this.spelled(ids.filter((id) => !this.special.has(id)));
  }

  /** The text of token ids, without a last character that is not whole. @param {number[]} ids */
  written(ids) {
    const bytes = joined(ids.filter((id) => !this.special.has(id)).map((id) => this.bytes[id] ?? new Uint8Array()));
    return decoded(bytes.subarray(0, complete(bytes)));
  }

  /** The text of token ids, control tokens by their names. @param {number[]} ids */
  spelled(ids) {
    return decoded(joined(ids.map((id) => this.bytes[id] ?? new Uint8Array())));
  }

  /** What a passage of tokens says, with a mark where control tokens part it. @param {number[]} ids */
  passage(ids) {
    let text = "";
    for (let at = 0; at < ids.length;) {
      let end = at + 1;
      const special = this.special.has(ids[at]);
      while (end < ids.length && this.special.has(ids[end]) === special) end += 1;
      text += special ? PARTED : this.spelled(ids.slice(at, end));
      at = end;
    }
    return text;
  }

  /** A hash of vocabulary and merges, equal for tokenizers that cut text alike. @returns {Promise<string>} */
  async hash() {
    const pieces = [...new Map([...Object.entries(this.vocab), ...this.added])];
    const lines = pieces.sort(([, a], [, b]) => Number(a) - Number(b)).map(([piece, id]) => `${id}\t${piece}\n`);
    const rules = this.rules.map((/** @type {string | string[]} */ rule) => `${Array.isArray(rule) ? rule.join(" ") : rule}\n`);
    const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode([...lines, ...rules].join("")));
    return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
  }
}

export const PARTED = " ¶ "; // stands for control tokens between two turns of a passage

/** The ids that a template puts before and after a text. @param {any} after @returns {[number[], number[]]} */
function templateOf(after) {
  if (!after || after.type === "ByteLevel") return [[], []];
  must(after.type === "TemplateProcessing", `${OTHER} (${after.type}).`);
  /** @type {[number[], number[]]} */
  const ends = [[], []];
  let side = 0;
  for (const part of after.single) {
    if (part.Sequence) side = 1;
    else ends[side].push(...after.special_tokens[part.SpecialToken.id].ids);
  }
  return ends;
}

/** @param {string} piece @param {Map<string, number>} added */
function bytesOf(piece, added) {
  const spelled = [...piece].map((character) => BYTES.get(character));
  if (added.has(piece) || spelled.includes(undefined)) return new TextEncoder().encode(piece);
  return Uint8Array.from(/** @type {number[]} */ (spelled));
}

const utf8 = new TextDecoder("utf-8", { ignoreBOM: true });

/** Bytes as text; broken characters become U+FFFD, and a byte order mark is kept. @param {Uint8Array} bytes */
const decoded = (bytes) => utf8.decode(bytes);

/** @param {Uint8Array[]} parts */
function joined(parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

/** Text of tokens as they come: a character shows with the token that completes it. */
export class TextStream {
  constructor() {
    this.pending = new Uint8Array();
  }

  /** @param {Uint8Array} bytes @returns {string} U+FFFD while a character is incomplete */
  push(bytes) {
    const data = joined([this.pending, bytes]);
    const end = complete(data);
    this.pending = data.slice(end);
    return decoded(data.subarray(0, end)) || (bytes.length ? "\uFFFD" : "");
  }
}

/** The number of leading bytes that are whole characters; a broken start counts as whole. @param {Uint8Array} data */
function complete(data) {
  for (let back = 1; back <= Math.min(3, data.length); back += 1) { // a beginning has three bytes at most
    const byte = data[data.length - back];
    if ((byte & 0xc0) === 0x80) continue;
    const need = byte < 0xc2 || byte > 0xf4 ? 1 : 2 + Number(byte >= 0xe0) + Number(byte >= 0xf0);
    const begun = need > back && (back === 1 || follows(byte, data[data.length - back + 1]));
    return begun ? data.length - back : data.length;
  }
  return data.length;
}

/** Whether a byte may be the second of a character of three or four bytes. Python's decoder, which is followed here, waits for the
 * third byte of a surrogate. @param {number} first @param {number} second */
function follows(first, second) {
  const least = first === 0xe0 ? 0xa0 : first === 0xf0 ? 0x90 : 0x80;
  const most = first === 0xf4 ? 0x8f : 0xbf;
  return least <= second && second <= most;
}
