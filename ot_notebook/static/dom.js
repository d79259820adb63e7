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

/** Keep as many nodes under `parent` as there are data, each made once, and fill each. */
function each(parent, data, make, fill) {
  while (parent.children.length > data.length) parent.lastElementChild.remove();
  data.forEach((datum, index) => {
    const node = parent.children[index] ?? parent.appendChild(make());
    fill(node, datum);
  });
}
