/* Runs the circuit's pure functions under node, for the tests in Python: one JSON request on stdin, one JSON answer on stdout.
 *
 * {flow: [trace, index, lambda]}, {answers: [texts, shown, lambda]}, {said: [trace, index, lambda]},
 * {ends: [from, to, down]} or {widths}. The modules import a DOM helper, so they need an empty document. */
import { readFileSync } from "node:fs";

globalThis.document = { addEventListener() {} };
const room = "../../mlpmem/ui/static/circuit";
const { answersOf, flowOf, spoken } = await import(`${room}/flow.js`);
const { band, stacked } = await import(`${room}/pipes.js`);

const answer = ({ flow, answers, said, ends, widths }) => {
  if (flow) return flowOf(...flow);
  if (answers) return answersOf(...answers);
  if (said) return spoken(flowOf(...said));
  return ends ? band(...ends) : stacked(widths);
};
console.log(JSON.stringify(JSON.parse(readFileSync(0, "utf8")).map(answer)));
