// Sample definitions: a card for each. Python describes the controls; this file draws them and reports edits.

const TYPING_MS = 180; // pause after which what was typed is checked

function createDefinition(index, rows, prefix, send) {
  const node = element("li", "ot-definition");
  const number = index + 1;
  const name = element("b", "ot-definition-number", `${number}.`);
  const head = element("div", "ot-definition-head");
  const grid = element("div", "ot-definition-fields");
  const draw = button("ot-button ot-small", "Draw now", () => usable(draw) && send({ op: "draw", index }));
  draw.setAttribute("aria-label", `Draw sample ${number} now`);
  const tools = element("span", "ot-item-tools");
  const act = (op, label) => iconButton(op, `${label} ${number}`, () => send({ op, index }));
  tools.append(act("up", "Move up sample"), act("down", "Move down sample"), act("copy", "Copy sample"), act("remove", "Remove sample"));
  const switches = element("span", "ot-definition-switches");
  head.append(name, switches, draw, tools);
  node.append(head, grid);

  const fields = rows.map((row) => {
    const control = makeControl({ ...row, lines: row.kind === "text" ? 2 : 0 });
    const box = element("div", `ot-definition-field ot-definition-${row.kind}`);
    const unit = row.unit && !row.label.endsWith(row.unit) ? ` (${row.unit})` : "";
    const label = element("label", "", row.label + unit);
    const problem = element("div", "ot-field-error");
    const { node: input } = control;
    input.id = `${prefix}-${index}-${row.path}`;
    input.title = row.help;
    label.htmlFor = input.id;
    problem.id = `${input.id}-problem`;
    let timer = 0;
    const edit = () => {
      clearTimeout(timer);
      timer = 0;
      send({ op: "edit", index, name: row.path, value: control.read() });
    };
    if (control.typed) {
      input.oninput = () => {
        clearTimeout(timer);
        timer = setTimeout(edit, TYPING_MS);
      };
      input.onkeydown = (event) => {
        if (event.key !== "Enter" || event.shiftKey) return;
        event.preventDefault(); // a prompt is one line
        edit();
      };
      input.onblur = () => timer && edit();
    } else input.onchange = edit;
    if (row.kind === "bool") {
      box.append(input, label, problem);
      switches.append(box);
    } else {
      box.append(label, input, problem);
      grid.append(box);
    }
    return {
      row,
      fill({ values, problems }) {
        const value = values[row.path];
        const wrong = problems[row.path] ?? "";
        const typing = control.typed && (timer || (input === document.activeElement && !document.hidden));
        if (!typing && control.read() !== value) control.write(value);
        write(problem, wrong);
        input.setAttribute("aria-invalid", String(Boolean(wrong)));
        if (wrong) input.setAttribute("aria-describedby", problem.id);
        else input.removeAttribute("aria-describedby");
      },
    };
  });
  return {
    node,
    fill({ item, view }) {
      fields.forEach((field) => field.fill(item));
      node.classList.toggle("ot-definition-off", item.values.enabled === false);
      able(draw, view.can_draw);
      draw.title = view.draw_hint;
    },
  };
}

export default () => {
  let line;
  return {
    initialize({ model }) {
      line = connect(model, 1000);
      return () => line.close();
    },
    render({ model, el }) {
      const send = (message) => model.send(message);
      const prefix = `ot-${Math.random().toString(36).slice(2)}`;
      const root = element("div", "ot ot-definitions");
      const head = element("div", "ot-head");
      const summary = element("span", "ot-status");
      const tools = element("div", "ot-buttons");
      const undo = button("ot-button", "Undo", () => usable(undo) && send({ op: "undo" }));
      const all = button("ot-button", "Draw all now", () => usable(all) && send({ op: "draw_all" }));
      const add = button("ot-button ot-primary", "Add a sample", () => send({ op: "add" }));
      tools.append(undo, all, add);
      head.append(element("h3", "", "Sample definitions"), summary, tools);
      const alert = createAlert();
      const list = element("ol", "ot-definition-list");
      const empty = createEmpty("No samples yet.", "Add one: it is drawn again and again while the model learns.", 110);
      root.append(head, alert.node, list, empty);
      el.append(root);

      const draw = () => {
        const view = model.get("view");
        if (!view?.items) return;
        write(summary, view.summary);
        able(undo, view.can_undo);
        able(all, view.can_draw && view.items.length > 0);
        all.title = view.draw_hint;
        alert.fill(view.alert);
        each(list, view.items.map((item) => ({ item, view })), (_datum, index) => createDefinition(index, view.rows, prefix, send));
        list.hidden = !view.items.length;
        empty.hidden = view.items.length > 0;
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
