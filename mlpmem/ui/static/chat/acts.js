// @ts-check
/* What a visitor does with a turn of the chat: another answer or word, more of one, another version, another question. */
/** @import { Turn } from "./types.js" */
/** @import { AnswerPane } from "./answer.js" */
/** @typedef {import("./chat.js").Chat} Chat */
import { isPhone } from "../core/dom.js";
import { lambdaOf } from "../core/state.js";
import { newAnswer } from "./kept/talk.js";
import { anotherPlan } from "./run.js";

class Acts {
  /** @param {Chat} chat */
  constructor(chat) {
    this.chat = chat;
  }

  /** Another answer: with a new seed, or where the likeliest token is always taken, begun with the next likeliest.
   * @param {AnswerPane} pane */
  again(pane) {
    const { chat } = this;
    const turn = chat.turnOf(pane);
    if (turn && chat.isFree()) chat.start(turn, [anotherPlan(turn, pane.system, chat.settings.sent, chat.nextLambda)], chat.nextLambda);
  }

  /** Goes on with an answer that was cut or stopped; where later questions follow it, as a new version.
   * @param {AnswerPane} pane */
  more(pane) {
    const { chat } = this;
    const turn = chat.turnOf(pane);
    const old = pane.answer;
    if (!turn || !old || !chat.isFree()) return;
    const asked = old.trace.finish === "stop_string" ? { ...old.asked, stop: [] } : old.asked;
    const answer = chat.talk.isFollowed(turn, old) ? { ...newAnswer(pane.system, asked, old.trace), how: old.how } : Object.assign(old, { asked });
    const forced = answer.trace.steps.map(({ id }) => id);
    chat.start(turn, [{ answer, forced, kept: forced.length }], old.trace.system === "lm" ? null : old.trace.lmbda);
  }

  /** Takes another word at a place of an answer, which is written on from there as a new version.
   * @param {AnswerPane} pane @param {number} index @param {number} id */
  write(pane, index, id) {
    const { chat } = this;
    const turn = chat.turnOf(pane);
    const old = pane.answer;
    if (!turn || !old || pane.isForeign || !chat.isFree()) return;
    const lmbda = lambdaOf(old.trace);
    if (old.trace.steps[index]?.id === id && lmbda === old.trace.lmbda) return; // it would write the same again
    const kept = old.trace.steps.slice(0, index);
    const forced = [...kept.map((step) => step.id), id];
    const answer = { ...newAnswer(pane.system, old.asked, { lmbda: old.trace.lmbda, settings: { forced }, steps: kept }), how: /** @type {"word"} */ ("word") };
    chat.start(turn, [{ answer, forced, kept: index }], old.trace.system === "lm" ? null : lmbda);
    if (isPhone()) chat.closeDrawer();
  }

  /** Shows another version of an answer. @param {AnswerPane} pane @param {number} by */
  turn(pane, by) {
    const { chat } = this;
    const turn = chat.turnOf(pane);
    const versions = turn?.answers[pane.system];
    if (!turn || !versions || chat.running) return;
    versions.at = Math.max(0, Math.min(versions.list.length - 1, versions.at + by));
    chat.closeDrawer();
    chat.keep.save(turn);
    chat.render();
  }

  /** Asks an edited question; false if it cannot be asked now. @param {Turn} turn @param {string} question */
  edit(turn, question) {
    const { chat } = this;
    if (!question.trim() || !chat.isFree(question)) return false;
    chat.pose(chat.talk.add(question, turn), Object.keys(turn.answers));
    return true;
  }

  /** Asks a question again, all its columns. @param {Turn} turn */
  repeat(turn) {
    const { chat } = this;
    const asked = chat.settings.sent;
    if (chat.isFree()) chat.start(turn, Object.keys(turn.answers).map((system) => anotherPlan(turn, system, asked, chat.nextLambda)), chat.nextLambda);
  }

  /** Asks a question without the decoder's own form of questions. @param {Turn} turn */
  typed(turn) {
    const { chat } = this;
    if (!chat.isFree()) return;
    const again = chat.talk.add(turn.question, turn);
    again.typed = true;
    chat.pose(again, Object.keys(turn.answers));
  }

  /** Shows another version of a question. @param {Turn} turn @param {number} by */
  choose(turn, by) {
    const { chat } = this;
    const siblings = chat.talk.siblings(turn);
    const other = siblings[siblings.indexOf(turn) + by];
    if (!other || chat.running) return;
    chat.talk.pick(other);
    chat.closeDrawer();
    chat.keep.save(other);
    chat.render();
  }
}

/** The handlers of a turn's controls. @param {Chat} chat */
export const actsOf = (chat) => {
  const acts = new Acts(chat);
  return { pick: chat.pick.bind(chat), again: acts.again.bind(acts), more: acts.more.bind(acts), write: acts.write.bind(acts),
    turn: acts.turn.bind(acts), edit: acts.edit.bind(acts), repeat: acts.repeat.bind(acts), typed: acts.typed.bind(acts), choose: acts.choose.bind(acts) };
};
