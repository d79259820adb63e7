// Changing many captions at once, seen before it is done. Joined in front of concepts.js.

const PREVIEW_MS = 250;
const ACTIONS = [
  { action: "replace", label: "Find and replace", fields: [["find", "Find"], ["text", "Replace with"]], flags: [["match_case", "Match case"], ["regex", "Regular expression"]] },
  { action: "add_tags", label: "Add tags", fields: [["tags", "Tags"]], flags: [["at", "At the start"]] },
  { action: "remove_tags", label: "Remove tags", fields: [["tags", "Tags"]], flags: [] },
  { action: "order_tags", label: "Bring tags to the front", fields: [["tags", "Tags in order; empty sorts all"]], flags: [], free: true },
  { action: "unique_tags", label: "Remove repeated tags", fields: [], flags: [], free: true },
  { action: "prefix", label: "Add in front", fields: [["text", "Text"]], flags: [] },
  { action: "suffix", label: "Add at the end", fields: [["text", "Text"]], flags: [] },
  { action: "caption", label: "Write the whole caption", fields: [["text", "Caption"]], flags: [] },
];

/** What differs between two texts, as nodes: the same, then old and new, then the same. */
function difference(before, after) {
  let start = 0;
  while (start < before.length && before[start] === after[start]) start += 1;
  let end = 0;
  while (end < before.length - start && end < after.length - start && before.at(-1 - end) === after.at(-1 - end)) end += 1;
  const letter = /[\p{L}\p{N}]/u; // whole words: half a word is hard to read
  while (start > 0 && letter.test(before[start - 1])) start -= 1;
  while (end > 0 && letter.test(before.at(-end))) end -= 1;
  const box = element("div", "ot-change");
  box.append(before.slice(Math.max(0, start - 60), start));
  if (start > 60) box.prepend("…");
  const old = before.slice(start, before.length - end);
  const young = after.slice(start, after.length - end);
  if (old) box.append(element("del", "", old));
  if (young) box.append(element("ins", "", young));
  const rest = before.slice(before.length - end);
  box.append(rest.slice(0, 60), rest.length > 60 ? "…" : "");
  return box;
}

/** Fill a choice of the images that are meant, and choose as before. */
function nameScope(scope, { found, selected }, value) {
  const choices = [["found", `All ${found.toLocaleString()} shown`]];
  if (selected.length) choices.unshift(["selected", `${selected.length.toLocaleString()} selected`]);
  scope.replaceChildren(...choices.map(([key, label]) => Object.assign(element("option", "", label), { value: key })));
  if (choices.some(([key]) => key === value)) scope.value = value;
}

/**
 * @param {HTMLElement} root
 * @param {object} model the widget.
 * @param {() => {found: number, selected: number[]}} facts
 */
function createBulk(root, model, facts) {
  const dialog = element("dialog", "ot ot-viewer ot-window ot-bulk");
  dialog.dataset.lmSuppressShortcuts = "true";
  dialog.setAttribute("aria-label", "Edit captions");
  const kind = element("select", "ot-input");
  kind.setAttribute("aria-label", "Edit");
  ACTIONS.forEach((one, index) => kind.append(Object.assign(element("option", "", one.label), { value: index })));
  const fields = element("div", "ot-bulk-fields");
  const scope = element("select", "ot-input");
  scope.setAttribute("aria-label", "Images");
  const words = element("div", "ot-bulk-words");
  words.setAttribute("role", "status");
  const list = element("ol", "ot-changes");
  list.tabIndex = 0;
  list.setAttribute("aria-label", "Changes");
  let timer = 0;
  let inputs = [];

  const options = () => {
    const given = {};
    for (const { name, node } of inputs) {
      if (node.type !== "checkbox") given[name] = node.value;
      else if (name === "at") given.at = node.checked ? "start" : "end";
      else given[name] = node.checked;
    }
    return given;
  };
  const where = () => (scope.value === "selected" ? facts().selected : null);
  const ready = () => {
    const chosen = ACTIONS[kind.value];
    return chosen.free || inputs[0]?.node.value || chosen.action === "caption";
  };
  const preview = () => {
    clearTimeout(timer);
    apply.disabled = true;
    if (!ready()) {
      write(words, "Type something to see what it changes.");
      list.replaceChildren();
      return;
    }
    write(words, "Looking");
    timer = setTimeout(
      () => model.send({ op: "preview", action: ACTIONS[kind.value].action, options: options(), where: where() }),
      PREVIEW_MS,
    );
  };
  const build = () => {
    const chosen = ACTIONS[kind.value];
    inputs = [];
    const make = ([name, label], type) => {
      const box = element("label", type === "checkbox" ? "ot-check" : "ot-bulk-field");
      const node = Object.assign(element("input", type === "checkbox" ? "" : "ot-input"), { type });
      node.spellcheck = false;
      node.oninput = preview;
      type === "checkbox" ? box.append(node, label) : box.append(element("span", "", label), node);
      inputs.push({ name, node });
      return box;
    };
    fields.replaceChildren(
      ...chosen.fields.map((one) => make(one, "text")),
      ...chosen.flags.map((one) => make(one, "checkbox")),
    );
    preview();
  };
  const received = (message) => {
    if (message.op !== "preview" || !dialog.open) return;
    const { total, changes, why } = message;
    words.classList.toggle("ot-wrong-words", Boolean(why));
    const rest = total > changes.length ? `; the first ${changes.length} are shown` : "";
    write(words, why || (total ? `${total.toLocaleString()} captions change${rest}.` : "No caption changes."));
    list.replaceChildren(
      ...changes.map((one) => {
        const row = element("li");
        row.append(element("b", "", one.name), difference(one.before, one.after));
        return row;
      }),
    );
    apply.disabled = !total;
    write(apply, total ? `Change ${total.toLocaleString()}` : "Change");
  };
  kind.onchange = build;
  scope.onchange = preview;
  const apply = button("ot-button ot-primary", "Change", () => {
    model.send({ op: "apply", action: ACTIONS[kind.value].action, options: options(), where: where() });
    dialog.close();
  });
  const cancel = button("ot-button", "Cancel", () => dialog.close());
  const head = element("div", "ot-viewer-head");
  head.append(element("p", "", "Edit captions"), cancel);
  const top = element("div", "ot-bulk-top");
  top.append(kind, scope);
  const foot = element("div", "ot-viewer-foot");
  foot.append(element("span", "", "Every change can be undone."), apply);
  dialog.append(head, top, fields, words, list, foot);
  dialog.onkeydown = (event) => {
    if (event.key === "Enter" && event.target.tagName === "INPUT" && !apply.disabled) apply.click();
  };
  model.on("msg:custom", received);
  root.append(dialog);
  return {
    /** Say of how many images the list is now. */
    follow: () => dialog.open && nameScope(scope, facts(), scope.value),
    open() {
      nameScope(scope, facts());
      dialog.showModal();
      build();
      (inputs[0]?.node ?? kind).focus();
    },
    close() {
      clearTimeout(timer);
      model.off("msg:custom", received);
      if (dialog.open) dialog.close();
    },
  };
}
