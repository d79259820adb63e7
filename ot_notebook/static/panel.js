// Controls and progress of a run. Python writes every text; this file draws `view` and reports clicks.

const ICONS = {
  start: "M3 1.5v11l10-5.5z",
  preflight: "M7 1a6 6 0 1 1 0 12A6 6 0 0 1 7 1zm0 1.6a4.4 4.4 0 1 0 0 8.8 4.4 4.4 0 0 0 0-8.8zM6.3 4h1.5v3.1l2 1.2-.7 1.2-2.8-1.7z",
  pause: "M3 2h3v10H3zM8 2h3v10H8z",
  resume: "M3 1.5v11l10-5.5z",
  stop: "M2.5 2.5h9v9h-9z",
  sample: "M1 2h12v10H1zm1.5 8.5h9L8.8 6.6 6.6 9.2 5 7.6z",
  backup: "M7 1a6 6 0 1 0 6 6h-1.6A4.4 4.4 0 1 1 7 2.6V5l3.5-3.2L7-1.2zM6.3 4h1.4v3l2.2 1.3-.7 1.2-2.9-1.8z",
  save: "M6.2 1h1.6v6.2l2.3-2.3 1.1 1.1L7 10.2 2.8 6l1.1-1.1 2.3 2.3zM1.5 11.4h11V13h-11z",
};

function makeBar() {
  const bar = element("div");
  const text = element("div", "ot-bar-text");
  text.append(element("span"), element("span"));
  const track = element("div", "ot-track");
  track.setAttribute("role", "progressbar");
  track.setAttribute("aria-valuemin", "0");
  track.setAttribute("aria-valuemax", "100");
  track.append(element("div", "ot-fill"));
  bar.append(text, track);
  return { node: bar, fill: (datum) => fillBar(bar, datum) };
}

function fillBar(bar, { label, text, percent }) {
  const [name, count] = bar.firstElementChild.children;
  write(name, label);
  write(count, text);
  const track = bar.lastElementChild;
  track.setAttribute("aria-label", label);
  track.setAttribute("aria-valuenow", String(Math.round(percent)));
  track.firstElementChild.style.width = `${percent}%`;
}

function makeStat() {
  const stat = element("div", "ot-stat");
  const [name, value] = [element("span"), element("b")];
  stat.append(name, value);
  return {
    node: stat,
    fill(datum) {
      write(name, datum[0]);
      write(value, datum[1]);
    },
  };
}

function fillButton(button, { op, label, enabled, hint, kind }) {
  if (button.dataset.op !== op) {
    button.dataset.op = op;
    button.replaceChildren(...(ICONS[op] ? [icon(ICONS[op])] : []), element("span"));
  }
  button.className = `ot-button ${kind ? `ot-${kind}` : ""}`;
  write(button.lastElementChild, label);
  // aria-disabled keeps the focus where it is when a click switches its own button off
  button.disabled = !enabled && button !== button.ownerDocument.activeElement;
  button.setAttribute("aria-disabled", String(!enabled));
  button.title = hint;
}

/** What Python asks in place: a text and what one may answer. The rest of the page goes on. */
function createQuestion(send) {
  const node = element("div", "ot-question");
  const text = element("span");
  text.setAttribute("role", "status");
  const answers = element("div", "ot-answers");
  node.append(text, answers);
  node.hidden = true;
  const makeAnswer = () => {
    const node = button("ot-button", undefined, () => send(node.dataset.op));
    return { node, fill: (control) => fillButton(node, control) };
  };
  /** A node that goes away must not take the focus with it. */
  const leave = (buttons) => {
    if (node.contains(node.ownerDocument.activeElement)) buttons.querySelector('[data-op="stop"], button')?.focus();
  };
  return {
    node,
    leave,
    offers: (op) => !node.hidden && Boolean(answers.querySelector(`[data-op="${op}"]`)),
    fill(question, buttons) {
      if (!question) leave(buttons);
      node.hidden = !question;
      write(text, question?.text ?? "");
      each(answers, question?.choices ?? [], makeAnswer);
    },
  };
}

export default () => {
  let line;
  return {
    initialize({ model }) {
      line = connect(model);
      return () => line.close();
    },
    render({ model, el }) {
      const root = element("div");
      const head = element("div", "ot-head");
      const badge = element("span", "ot-badge");
      badge.setAttribute("role", "status");
      const status = element("span", "ot-status");
      const buttons = element("div", "ot-buttons");
      buttons.setAttribute("role", "group");
      buttons.setAttribute("aria-label", "Control the run");
      head.append(badge, status, buttons);
      const question = createQuestion((op) => send(op));
      const alert = createAlert();
      const bars = element("div", "ot-bars");
      const stats = element("div", "ot-stats");
      root.append(head, question.node, alert.node, bars, stats);
      el.append(root);

      const send = (command) => model.send({ op: "do", command });
      const makeButton = () => {
        const node = button("ot-button", undefined, () => usable(node) && send(node.dataset.op));
        return { node, fill: (control) => fillButton(node, control) };
      };
      root.onkeydown = (event) => {
        if (event.key !== "Escape" || !question.offers("keep")) return;
        event.stopPropagation();
        question.leave(buttons);
        send("keep");
      };
      const draw = () => {
        const view = model.get("view");
        if (!view?.state) return;
        root.className = `ot ot-panel ot-tone-${view.tone}`;
        root.dataset.state = view.state;
        write(badge, view.label);
        write(status, view.status);
        status.title = view.status;
        each(buttons, view.buttons, makeButton);
        question.fill(view.question, buttons);
        alert.fill(view.alert);
        each(bars, view.bars, makeBar);
        each(stats, view.stats, makeStat);
      };
      model.on("change:view", draw);
      draw();
      const hidden = line.shown(el);
      return () => {
        model.off("change:view", draw);
        hidden();
      };
    },
  };
};
