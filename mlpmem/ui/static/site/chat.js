// @ts-check
/* The Chat tab of the static site: its questions go to the worker, as mlpmem/ui/panels/chat.py answers them on a server. */
/** @import { ChatRequest } from "../chat/types.js" */
/** @import { Desk } from "./desk.js" */
import { mountChat } from "../chat/chat.js";
import { at } from "./desk.js";
import { Slot, packed } from "./slot.js";

/** Mounts the chat. @param {Desk} desk */
export const mountChatTab = (desk) => {
  const slot = new Slot(packed(null), { texts: desk.values.chat });
  /** @type {number | null} */
  let job = null;
  mountChat(at("chat"), slot.props, slot.watch, {
    ask: (/** @type {ChatRequest} */ request) => {
      const searches = request.columns.some(({ system }) => system === "knn");
      const plan = { kind: "chat", ...request, own: searches && Boolean(desk.own) };
      job = desk.ask(plan, (value) => {
        const known = value.kind === "begin" ? desk.known(value.prompt) : {};
        slot.set(packed({ ...value, ...known, ...(value.kind === "begin" ? { own: plan.own ? desk.own : "" } : {}) }));
      });
    },
    halt: () => desk.door?.stop(job),
  });
};
