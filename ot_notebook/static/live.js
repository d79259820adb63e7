// The line between a page and the kernel, joined in front of each live module by Python.
// It says hello, tells whether a view is on the page, and beats: on Colab, updates only arrive as answers.

const BEAT_MS = 500;
const LOST_MS = 5000; // an answer that takes longer is taken for lost, so that the heart goes on

/**
 * @param {{on: Function, off: Function, send: Function}} model
 * @returns {{shown: () => () => void, close: () => void}} `shown` counts a view and gives its undo.
 */
export function connect(model) {
  const client = Math.random().toString(36).slice(2);
  let views = 0;
  let asked = 0; // when the beat in flight was sent; one at a time, so a slow kernel is never flooded
  const send = (op) => {
    try {
      model.send({ op, client });
    } catch {
      clearInterval(timer); // the widget was closed
    }
  };
  const answered = (message) => {
    if (message.op === "ack") asked = 0;
  };
  const beat = () => {
    if (!views || document.hidden || (asked && Date.now() - asked < LOST_MS)) return;
    asked = Date.now();
    send("beat");
  };
  const timer = setInterval(beat, BEAT_MS);
  model.on("msg:custom", answered);
  send("hello");
  return {
    shown() {
      views += 1;
      if (views === 1) send("show");
      return () => {
        views -= 1;
        if (!views) send("hide");
      };
    },
    close() {
      clearInterval(timer);
      model.off("msg:custom", answered);
    },
  };
}
