// Icons with names, and the control of a setting; joined in front of each live module by Python.

const SHAPES = {
  undo: "M5.2 1 1.5 4.5 5.2 8V5.5h3.3a2.5 2.5 0 0 1 0 5H4V12h4.5a4 4 0 0 0 0-8H5.2z",
  redo: "M8.8 1v3H5.5a4 4 0 0 0 0 8H10v-1.5H5.5a2.5 2.5 0 0 1 0-5h3.3V8l3.7-3.5z",
  reset: "M7 1.5a5.5 5.5 0 1 1-5.3 4h1.6A4 4 0 1 0 7 3v2.2L3.5 2.6 7 0z",
  save: "M1.5 1.5h9l2 2v9h-11zM3 3v3h7V3zm4 5a1.5 1.5 0 1 0 0 3 1.5 1.5 0 0 0 0-3z",
  remove: "M3.7 2.6 7 5.9l3.3-3.3 1.1 1.1L8.1 7l3.3 3.3-1.1 1.1L7 8.1l-3.3 3.3-1.1-1.1L5.9 7 2.6 3.7z",
  up: "M7 3l5 6.5H2z",
  down: "M7 11 2 4.5h10z",
  copy: "M1.5 1.5h8V4H8V3H3v5h1v1.5H1.5zM5 5h7.5v7.5H5zm1.5 1.5V11H11V6.5z",
};

function iconButton(shape, label, onclick, className = "") {
  const node = button(`ot-icon ${className}`, undefined, onclick);
  node.append(icon(SHAPES[shape]));
  node.title = label;
  node.setAttribute("aria-label", label);
  return node;
}

/** The control of one setting: its node, and functions that write and read it. */
function makeControl(row) {
  if (row.kind === "bool") {
    const node = element("input", "ot-switch");
    node.type = "checkbox";
    return { node, typed: false, write: (value) => (node.checked = value), read: () => node.checked };
  }
  if (row.kind === "choice") {
    const node = element("select", "ot-input");
    const put = (value, label) => node.append(Object.assign(element("option", "", label), { value }));
    row.choices.forEach(([value, label]) => put(value, label));
    const write = (value) => {
      if (![...node.options].some((option) => option.value === value)) put(value, value); // a draft
      node.value = value;
    };
    return { node, typed: false, write, read: () => node.value };
  }
  const lines = row.lines || (row.kind === "json" ? 1 : 0);
  const node = element(lines ? "textarea" : "input", "ot-input");
  if (lines) node.rows = lines;
  else node.type = "text";
  if (row.kind === "number") node.inputMode = "decimal";
  node.spellcheck = false;
  node.autocomplete = "off";
  if (row.nullable) node.placeholder = "not set";
  return { node, typed: true, write: (value) => (node.value = value), read: () => node.value };
}

/** Switch a button on or off. One that has the focus keeps it: it only says that it does nothing. */
function able(node, enabled) {
  node.disabled = !enabled && node !== node.ownerDocument.activeElement;
  node.setAttribute("aria-disabled", String(!enabled));
}

function usable(node) {
  return node.getAttribute("aria-disabled") !== "true";
}

/** What was refused, and why. */
function createAlert() {
  const node = element("div", "ot-alert");
  node.setAttribute("role", "alert");
  node.hidden = true;
  return {
    node,
    fill(alert) {
      node.hidden = !alert;
      if (!alert) return node.replaceChildren();
      node.className = `ot-alert ot-tone-${alert.tone}`;
      if (node.textContent !== `${alert.title}\n${alert.text}`) {
        node.replaceChildren(element("b", "", alert.title), `\n${alert.text}`);
      }
    },
  };
}

/** A quiet box in place of something that is not there yet. */
function createEmpty(text, hint, height) {
  const node = element("div", "ot-empty");
  node.style.height = `${height}px`;
  node.append(element("span", "", text), element("small", "", hint));
  return node;
}

/** `draw`, after which what had the focus has it still: a node that is moved loses it. */
function keepingFocus(root, draw) {
  return () => {
    const active = document.activeElement;
    draw();
    if (active && active !== document.activeElement && root.contains(active)) active.focus();
  };
}
