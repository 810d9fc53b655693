// @ts-check
/* Beat the memory: five rounds of recorded answers, guessed before they are seen. It asks no server. */
/** @import { GameRound, GameRow, Props } from "../core/types.js" */
import { h, inside, setText } from "../core/dom.js";
import { isRight } from "../core/mix.js";
import { nameOf } from "../core/state.js";
import { cardOf } from "./card.js";

const ROUNDS = 5;
const SAME = 2; // rounds of one question, or with one outcome, while there are others
const SYSTEMS = /** @type {const} */ (["lm", "memory", "knn"]);

/** @template T @param {T[]} list @returns {T[]} */
const shuffled = (list) => list.map((one) => ({ one, at: Math.random() })).sort((a, b) => a.at - b.at).map(({ one }) => one);

/** Every round that a row gives: one per lambda. @param {GameRow} row @returns {GameRound[]} */
const roundsOf = (row) => row.lmbdas.map((lmbda, i) => {
  const columns = SYSTEMS.map((system) => {
    const text = (system === "lm" ? row.lm : row[system][i]).trim();
    return { system, title: nameOf(system).title, text, right: row.answers.some((answer) => isRight(text, answer)) };
  });
  const question = row.prompt.replace(/^Question:\s*/, "").replace(/\s*Answer:\s*$/, "");
  return { question, lmbda, columns, answer: row.answers[0], curve: row.curve };
});

/** Five rounds with different questions and outcomes, as far as there are any. @param {GameRow[]} rows */
const drawn = (rows) => {
  const all = shuffled(rows.flatMap((row) => roundsOf(row)).filter(({ lmbda }) => lmbda > 0));
  /** @type {Map<string, number>} */
  const seen = new Map();
  /** @type {GameRound[]} */
  const chosen = [];
  for (const most of [SAME, Number.POSITIVE_INFINITY]) {
    for (const round of all) {
      const keys = [round.question, round.columns.map(({ right }) => right).join()];
      if (chosen.length === ROUNDS || chosen.includes(round) || keys.some((key) => (seen.get(key) ?? 0) >= most)) continue;
      for (const key of keys) seen.set(key, (seen.get(key) ?? 0) + 1);
      chosen.push(round);
    }
  }
  return chosen;
};

class Game {
  /** @param {HTMLElement} host @param {GameRow[]} rows */
  constructor(host, rows) {
    this.rows = rows;
    this.at = 0;
    /** @type {GameRound[]} */
    this.rounds = [];
    this.score = { you: 0, memory: 0 };
    this.head = h("h2", { class: "game-head", tabindex: "-1" }, "Beat the memory");
    this.body = h("div", { class: "game-body" }, h("p", { class: "panel-note" },
      "Five recorded questions. Guess which column is right, then see. The memory plays along."), this.#button("Start", () => this.start()));
    host.replaceChildren(h("section", { class: "game", "aria-label": "Beat the memory" }, this.head, this.body));
  }

  /** @param {string} text @param {() => void} act */
  #button(text, act) {
    return h("button", { type: "button", class: "pane-tool", on: { click: act } }, text);
  }

  /** @param {string} head @param {any[]} content */
  #show(head, ...content) {
    setText(this.head, head);
    this.body.replaceChildren(...content);
    this.head.focus({ preventScroll: true });
    this.body.lastElementChild?.scrollIntoView({ block: "nearest" }); // above the dock, by its margin
  }

  start() {
    this.rounds = drawn(this.rows);
    this.score = { you: 0, memory: 0 };
    this.at = 0;
    this.#ask();
  }

  #ask() {
    const { question, lmbda } = this.rounds[this.at];
    /** @type {[string, string][]} */
    const choices = [...SYSTEMS.map((system) => /** @type {[string, string]} */ ([system, nameOf(system).title])), ["none", "None of them"]];
    this.#show(`Round ${this.at + 1} of ${this.rounds.length}`,
      h("p", { class: "game-question", dir: "auto" }, question),
      h("p", { class: "panel-note" }, `Which column is right at λ = ${lmbda.toFixed(1)}? Name one that is.`),
      h("div", { class: "game-choices" }, choices.map(([system, title]) =>
        h("button", { type: "button", class: "pane-tool game-choice", "data-system": system,
          on: { click: () => this.#guess(system) } }, title))));
  }

  /** @param {string} guess */
  #guess(guess) {
    const { columns, answer, question } = this.rounds[this.at];
    const won = guess === "none" ? columns.every(({ right }) => !right) : columns.some(({ system, right }) => right && system === guess);
    this.score.you += Number(won);
    this.score.memory += Number(columns[1].right);
    this.at += 1;
    const over = this.at === this.rounds.length;
    this.#show(won ? "You have it" : "Not this time",
      h("p", { class: "game-question", dir: "auto" }, question),
      h("div", { class: "game-columns" }, columns.map(({ system, title, text, right }) =>
        h("div", { class: "game-column", "data-system": system, "data-right": String(right) }, h("b", null, title),
          h("span", { dir: "auto" }, `${right ? "✓ right: " : "✗ wrong: "}${text}`)))),
      h("p", { class: "panel-note" }, `Right answer: ${answer}. You ${this.score.you}, the memory ${this.score.memory}.`),
      this.#button(over ? "See the result" : "Next round", () => (over ? this.#end() : this.#ask())));
  }

  #end() {
    const { you, memory } = this.score;
    const said = you > memory ? "You beat the memory" : you === memory ? "A draw" : "The memory wins";
    const mixed = this.rounds.find(({ columns }) => columns.some(({ right }) => right) && columns.some(({ right }) => !right));
    const link = window.location.protocol.startsWith("http") ? window.location.href.split(/[?#]/)[0] : "MLP Memory, live";
    const card = cardOf(mixed ?? this.rounds[0], `I got ${you} of ${this.rounds.length}, the memory ${memory}`, link);
    card.className = "game-card";
    card.setAttribute("role", "img");
    card.setAttribute("aria-label", `A card with one round: ${(mixed ?? this.rounds[0]).question}`);
    this.#show(`${said}: ${you} to ${memory}`, card, h("div", { class: "game-choices" },
      this.#button("Save the card", () => this.#save(card)), this.#button("Play again", () => this.start())));
  }

  /** @param {HTMLCanvasElement} card */
  #save(card) {
    card.toBlob((blob) => {
      if (!blob) return;
      const url = URL.createObjectURL(blob);
      h("a", { href: url, download: "beat-the-memory.png" }).click();
      window.setTimeout(() => URL.revokeObjectURL(url), 10_000);
    }, "image/png");
  }
}

/** props.value has the recorded questions. @type {(element: Element, props: Props<GameRow[]>) => void} */
export const mountGame = (element, props) => {
  if (props.value?.length) new Game(inside(element, ".game-host"), props.value);
};
