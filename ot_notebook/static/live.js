// The line between a page and the kernel, joined in front of each live module by Python.
// It says hello, tells whether a view is on the page, and beats: on Colab, updates only arrive as answers.

const BEAT_MS = 500;
const LOST_MS = 5000; // an answer that takes longer is taken for lost, so that the heart goes on

/** Whether a node is on the page, and neither it nor a box around it is switched off. */
function onPage(node) {
  return node.getClientRects().length > 0 && getComputedStyle(node).visibility !== "hidden";
}

/**
 * @param {{on: Function, off: Function, send: Function}} model
 * @param {number} period milliseconds between two beats
 * @returns {{shown: (el?: Element) => () => void, close: () => void}} `shown` adds a view and gives its undo; one
 *   whose element is hidden, as in a tab that is not open, counts again when it is seen.
 */
export function connect(model, period = BEAT_MS) {
  const client = Math.random().toString(36).slice(2);
  const views = new Set();
  let seen = false;
  let asked = 0; // when the beat in flight was sent; one at a time, so a slow kernel is never flooded
  const send = (op) => {
    try {
      model.send({ op, client });
    } catch {
      clearInterval(timer); // the widget was closed
    }
  };
  const tell = (now) => {
    if (now === seen) return;
    seen = now;
    send(seen ? "show" : "hide");
  };
  const acknowledged = (message) => {
    if (message.op === "ack") asked = 0;
  };
  const changed = () => {
    asked = 0; // new state answers, too
  };
  const beat = () => {
    tell([...views].some((view) => !view.el || onPage(view.el)));
    if (!seen || document.hidden || (asked && Date.now() - asked < LOST_MS)) return;
    asked = Date.now();
    send("beat");
  };
  const timer = setInterval(beat, period);
  model.on("msg:custom", acknowledged);
  model.on("change", changed);
  send("hello");
  return {
    shown(el) {
      const view = { el };
      views.add(view);
      tell(true); // its element is about to be put on the page
      return () => {
        views.delete(view);
        if (!views.size) tell(false);
      };
    },
    close() {
      clearInterval(timer);
      model.off("msg:custom", acknowledged);
      model.off("change", changed);
    },
  };
}
