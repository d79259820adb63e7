// Captions and masks by a model, started from the page. Joined in front of concepts.js.

const MODES = {
  caption: [["fill", "Only images without a caption"], ["add", "Add what the caption does not say"], ["replace", "In place of captions"]],
  mask: [
    ["fill", "Only images without a mask"], ["replace", "In place of masks"], ["add", "Add to what is learnt"],
    ["subtract", "Take off what is learnt"], ["blend", "Old and new half and half"],
  ],
};

/**
 * @param {HTMLElement} root
 * @param {object} model the widget.
 * @param {() => {found: number, selected: number[]}} facts
 */
function createAnnotate(root, model, facts) {
  const dialog = element("dialog", "ot ot-viewer ot-window ot-annotate");
  dialog.dataset.lmSuppressShortcuts = "true";
  dialog.setAttribute("aria-label", "Captions and masks by a model");
  const { annotators } = model.get("choices");
  const fields = element("div", "ot-annotate-fields");
  const field = (label, node) => {
    const box = element("label", "ot-bulk-field");
    box.append(element("span", "", label), node);
    return box;
  };
  const choice = (options) => {
    const node = element("select", "ot-input");
    node.replaceChildren(...options.map(([value, label]) => Object.assign(element("option", "", label), { value })));
    return node;
  };
  const kind = element("select", "ot-input");
  for (const [makes, label] of [["caption", "Captions"], ["mask", "Masks"]]) {
    const group = Object.assign(element("optgroup"), { label });
    for (const one of annotators.filter((each) => each.makes === makes)) {
      group.append(Object.assign(element("option", "", one.label), { value: one.name }));
    }
    kind.append(group);
  }
  const source = Object.assign(element("input", "ot-input"), { type: "text", spellcheck: false });
  const scope = element("select", "ot-input");
  const lower = element("div", "ot-annotate-fields");
  let mode = choice(MODES.caption);
  let inputs = [];
  const chosen = () => annotators.find((one) => one.name === kind.value);
  const build = () => {
    const { makes, model: usual, options } = chosen();
    source.value = usual;
    inputs = options.map(([name, label, value]) => ({
      name, label, node: Object.assign(element("input", "ot-input"), { type: "text", value: String(value), spellcheck: false }),
    }));
    mode = choice(MODES[makes]);
    fields.replaceChildren(
      field("Model", kind), field("Folder or hub id", source), ...inputs.map(({ label, node }) => field(label, node)),
    );
    lower.replaceChildren(field(makes === "caption" ? "Captions" : "Masks", mode), field("Images", scope));
  };
  kind.onchange = build;
  const start = button("ot-button ot-primary", "Start", () => {
    const options = Object.fromEntries(inputs.map(({ name, node }) => [name, node.value]));
    const where = scope.value === "selected" ? facts().selected : null;
    model.send({ op: "annotate", kind: kind.value, model: source.value, mode: mode.value, where, options });
    dialog.close();
  });
  const head = element("div", "ot-viewer-head");
  head.append(element("p", "", "Captions and masks by a model"), button("ot-button", "Cancel", () => dialog.close()));
  const foot = element("div", "ot-viewer-foot");
  foot.append(element("span", "", "Runs in the background. Every change can be undone."), start);
  dialog.append(head, fields, lower, foot);
  dialog.onkeydown = (event) => {
    if (event.key === "Enter" && event.target.tagName === "INPUT") start.click();
  };
  root.append(dialog);
  return {
    /** Say of how many images the list is now. */
    follow: () => dialog.open && nameScope(scope, facts(), scope.value),
    open() {
      nameScope(scope, facts());
      dialog.showModal();
      if (!inputs.length) build();
      kind.focus();
    },
    close() {
      if (dialog.open) dialog.close();
    },
  };
}
