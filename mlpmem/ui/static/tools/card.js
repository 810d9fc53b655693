// @ts-check
/* The game's card: one round as a picture, drawn in the browser. */
/** @import { GameRound } from "../core/types.js" */
import { percent } from "../core/dom.js";

const [WIDE, HIGH, EDGE] = [1200, 630, 56];
const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";
/** @type {{ [system: string]: string }} */
const COLOURS = { lm: "#4b688f", memory: "#7537ab", knn: "#a45400" };
const SIZES = [32, 26, 22]; // pixels of an answer: a long one is smaller before it is cut
const [INK, SOFT, LINE, GOOD, BAD] = ["#1a1d21", "#5a6370", "#dcdfe3", "#08694a", "#a52a35"];

/** Cuts a text to a width. @param {CanvasRenderingContext2D} pen @param {string} text @param {number} width */
const fitted = (pen, text, width) => {
  let shown = text;
  while (shown.length > 1 && pen.measureText(shown).width > width) shown = `${shown.slice(0, -2).trimEnd()}…`;
  return shown;
};

/** Draws a text in at most two lines. @param {CanvasRenderingContext2D} pen @param {string} text @param {number} y */
const wrapped = (pen, text, y) => {
  const width = WIDE - 2 * EDGE;
  let line = "";
  const words = text.split(" ");
  while (words.length && pen.measureText(`${line} ${words[0]}`).width <= width) line += `${line ? " " : ""}${words.shift()}`;
  pen.fillText(line || fitted(pen, text, width), EDGE, y);
  if (line && words.length) pen.fillText(fitted(pen, words.join(" "), width), EDGE, y + 46);
};

/** The probability of the right answer over lambda. @param {CanvasRenderingContext2D} pen @param {GameRound} round */
const curve = (pen, { curve: values, lmbda }) => {
  const [x, y, w, h] = [EDGE, 392, WIDE - 2 * EDGE, 120];
  pen.strokeStyle = LINE;
  pen.lineWidth = 2;
  pen.strokeRect(x, y, w, h);
  pen.strokeStyle = COLOURS.memory;
  pen.lineWidth = 4;
  pen.beginPath();
  for (const [i, value] of values.entries()) pen.lineTo(x + (w * i) / (values.length - 1), y + h - h * value);
  pen.stroke();
  pen.strokeStyle = INK;
  pen.lineWidth = 2;
  pen.beginPath();
  pen.moveTo(x + w * lmbda, y);
  pen.lineTo(x + w * lmbda, y + h);
  pen.stroke();
  pen.font = `22px ${FONT}`;
  pen.fillStyle = SOFT;
  pen.fillText("λ 0: decoder only", x, y + h + 30);
  pen.textAlign = "right";
  pen.fillText("memory only: 1", x + w, y + h + 30);
  pen.textAlign = "left";
  const best = Math.max(...values);
  pen.fillText(`probability of the right answer with the memory, up to ${percent(best)} %`, x, y - 14);
};

/** A card of a round: question, three answers, lambda curve, link. @type {(round: GameRound, score: string, link: string) => HTMLCanvasElement} */
export const cardOf = (round, score, link) => {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [WIDE, HIGH];
  const pen = canvas.getContext("2d");
  if (!pen) return canvas;
  pen.fillStyle = "#fbfbf9";
  pen.fillRect(0, 0, WIDE, HIGH);
  pen.fillStyle = SOFT;
  pen.font = `600 26px ${FONT}`;
  pen.fillText(`Beat the memory · ${score}`, EDGE, 66);
  pen.fillStyle = INK;
  pen.font = `700 38px ${FONT}`;
  wrapped(pen, round.question, 122);
  for (const [i, { system, title, text, right }] of round.columns.entries()) {
    const [x, width] = [EDGE + i * 370, 340];
    pen.fillStyle = COLOURS[system];
    pen.fillRect(x, 208, width, 5);
    pen.font = `600 24px ${FONT}`;
    pen.fillText(fitted(pen, title, width), x, 246);
    pen.fillStyle = right ? GOOD : BAD;
    const answer = `${right ? "✓" : "✗"} ${text}`;
    for (const size of SIZES) {
      pen.font = `700 ${size}px ${FONT}`;
      if (pen.measureText(answer).width <= width) break;
    }
    pen.fillText(fitted(pen, answer, width), x, 292);
  }
  pen.fillStyle = SOFT;
  pen.font = `22px ${FONT}`;
  pen.fillText(`at λ = ${round.lmbda.toFixed(1)}`, EDGE, 330);
  if (round.curve.length > 1) curve(pen, round);
  pen.fillStyle = INK;
  pen.font = `600 24px ${FONT}`;
  pen.fillText(fitted(pen, link, WIDE - 2 * EDGE), EDGE, HIGH - 36);
  return canvas;
};
