// Rows of the settings form, joined in front of form.js by Python.

/** Names to choose from while one types; any other text is still taken. */
function suggest(input, names) {
  const list = input.list ?? element("datalist");
  if (list.dataset.names === names.join()) return;
  list.dataset.names = names.join();
  list.id = `${input.id}-names`;
  list.replaceChildren(...names.map((value) => Object.assign(element("option"), { value })));
  input.after(list);
  input.setAttribute("list", list.id);
}

/** One setting: label, control, unit, badge, reset, and what is wrong with it. */
function createRow(row, path, form) {
  const node = element("div", `ot-field ot-kind-${row.kind}`);
  const control = makeControl(row);
  const id = `${form.client}-${path}`;
  control.node.id = id;
  const label = element("label", "ot-field-label", row.label);
  label.htmlFor = id;
  const box = element("div", "ot-field-control");
  box.append(control.node);
  if (row.unit) box.append(element("span", "ot-unit", row.unit));
  if (BADGES[row.applies]) {
    const badge = element("span", "ot-chip", BADGES[row.applies]);
    badge.title = APPLIES[row.applies];
    box.append(badge);
  }
  const reset = iconButton("reset", "", () => form.send({ op: "reset", path }), "ot-reset");
  const problem = element("div", "ot-field-error");
  problem.id = `${id}-problem`;
  node.append(label, box, reset, problem);

  const { node: input } = control;
  if (control.typed) {
    input.oninput = () => form.edit(path, control.read(), TYPING_MS);
    input.onblur = () => form.leave();
    input.onkeydown = (event) => {
      if (event.key === "Enter" && !(event.shiftKey || row.kind === "json")) form.leave();
    };
  }
  input.onchange = () => form.edit(path, control.read(), 0);
  const describe = () => form.describe(row, path);
  node.onpointerenter = describe;
  input.onfocus = describe;

  return {
    node,
    fill(value, there, wrong) {
      const busy = form.waits(path) || (control.typed && input === form.focused());
      if (!busy && control.read() !== value) control.write(value);
      const names = form.offered(path);
      if (names) suggest(input, names);
      const changed = there !== undefined;
      node.classList.toggle("ot-changed", changed);
      reset.classList.toggle("ot-away", !changed);
      reset.tabIndex = changed ? 0 : -1;
      if (changed) {
        reset.title = `Back to ${there}`;
        reset.setAttribute("aria-label", `Reset ${row.label} to ${there}`);
      }
      const told = problem.textContent;
      write(problem, wrong?.text ?? "");
      problem.classList.toggle("ot-warn", wrong?.severity === "warning");
      // below the last row in sight the words would appear where nobody sees them
      if (wrong && !told && input === form.focused()) problem.scrollIntoView({ block: "nearest" });
      input.setAttribute("aria-invalid", String(wrong?.severity === "error"));
      if (wrong) input.setAttribute("aria-describedby", problem.id);
      else input.removeAttribute("aria-describedby");
    },
  };
}

/** A list of sections: a card for each item, made of the same rows. */
function createList(row, path, form) {
  const node = element("div", "ot-field ot-list");
  const head = element("div", "ot-list-head");
  const reset = iconButton("reset", "", () => form.send({ op: "reset", path }), "ot-reset");
  const add = button("ot-button ot-small", `Add to ${row.label.toLowerCase()}`, () => act("add", 0));
  head.append(element("span", "ot-field-label", row.label), reset, add);
  const cards = element("div", "ot-cards");
  const problem = element("div", "ot-field-error");
  node.append(head, problem, cards);
  head.onpointerenter = () => form.describe(row, path);
  const act = (action, index) => form.send({ op: "items", path, action, index });
  let made = [];

  const makeCard = (index) => {
    const card = element("section", "ot-item");
    const title = element("b");
    const tools = element("span", "ot-item-tools");
    const number = index + 1;
    tools.append(
      iconButton("up", `Move ${number} up`, () => act("up", index)),
      iconButton("down", `Move ${number} down`, () => act("down", index)),
      iconButton("copy", `Copy ${number}`, () => act("copy", index)),
      iconButton("remove", `Remove ${number}`, () => act("remove", index)),
    );
    const top = element("div", "ot-item-head");
    top.append(title, tools);
    card.append(top);
    const fields = element("div", "ot-fields");
    const rows = row.items.map((inner) => {
      const full = `${path}.${index}.${inner.path}`;
      const one = createRow(inner, full, form);
      fields.append(one.node);
      return { ...one, inner, path: full };
    });
    card.append(fields);
    const named = rows.filter(({ inner }) => inner.kind === "text" && inner.level === "basic");
    return {
      node: card,
      rows,
      fill({ values, problems }) {
        const name = named.map(({ inner }) => values[inner.path]).find(Boolean);
        write(title, `${index + 1}. ${name ?? "new"}`);
        for (const one of rows) one.fill(values[one.inner.path], undefined, problems.get(one.path));
      },
    };
  };
  return {
    node,
    fill(values, there, wrong, problems) {
      made = each(cards, values.map((item) => ({ values: item, problems })), (_datum, index) => makeCard(index));
      const changed = there !== undefined;
      head.classList.toggle("ot-changed", changed);
      reset.classList.toggle("ot-away", !changed);
      reset.tabIndex = changed ? 0 : -1;
      reset.title = `Back to ${there}`;
      reset.setAttribute("aria-label", `Reset ${row.label} to ${there}`);
      write(problem, wrong?.text ?? "");
      problem.classList.toggle("ot-warn", wrong?.severity === "warning");
    },
    /** Show of each item what counts: its basic rows, or all; and what is wrong in any case. */
    filter(all, visible, problems) {
      for (const { rows } of made)
        for (const { node, inner, path } of rows)
          node.hidden = !(problems.has(path) || (visible.has(path) && (all || inner.level === "basic")));
    },
  };
}
