// Small helpers for the page, joined in front of each module by Python.

const FOCUSABLE = new Set(["button", "dialog", "input", "select", "summary", "textarea"]);

function element(tag, className, text) {
  const node = document.createElement(tag);
  // or a key on a focused button would be JupyterLab's: "b" inserts a cell, "d d" deletes one;
  // the attribute must be on the element that has the focus
  if (FOCUSABLE.has(tag)) node.dataset.lmSuppressShortcuts = "true";
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function button(className, text, onclick) {
  const node = element("button", className, text);
  node.type = "button";
  node.onclick = onclick;
  return node;
}

/** A drawing of 14 by 14 units, in the colour of the text around it. */
function icon(path) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 14 14");
  svg.setAttribute("aria-hidden", "true");
  const shape = document.createElementNS("http://www.w3.org/2000/svg", "path");
  shape.setAttribute("d", path);
  svg.append(shape);
  return svg;
}

/** Write only what differs, so that nothing flickers and a screen reader is not told twice. */
function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Put `nodes` under `parent` in order, moving only what is elsewhere: the focus stays. */
function arrange(parent, nodes) {
  nodes.forEach((node, index) => {
    if (parent.children[index] !== node) parent.insertBefore(node, parent.children[index] ?? null);
  });
  while (parent.children.length > nodes.length) parent.lastElementChild.remove();
}

/**
 * A part of the page for each datum: made once, found again by its key, filled each time, in order.
 *
 * @param {(datum, index) => {node: Element, fill: (datum, index) => void}} make
 * @param {(datum, index) => unknown} keyOf tells data apart; by their place if it is left out
 * @returns the parts
 */
function each(parent, data, make, keyOf = (_datum, index) => index) {
  const known = parent.otParts ?? new Map();
  const parts = new Map();
  data.forEach((datum, index) => {
    const key = keyOf(datum, index);
    const part = known.get(key) ?? make(datum, index);
    parts.set(key, part);
    part.fill(datum, index);
  });
  parent.otParts = parts;
  const list = [...parts.values()];
  arrange(parent, list.map(({ node }) => node));
  return list;
}
