// The picture to begin with, and the brush for its mask. Joined in front of inference.js.

const CRISP = 128; // smaller pictures show their pixels: blurred, a 64 px drawing looks broken
const SEND_MS = 250; // after a stroke, before its mask travels
const PART_BYTES = 4 * 2 ** 20; // of a file: a message of 10 MiB cuts the line to Jupyter's server

/** A comm buffer is a DataView or a typed array, by platform; it may be a window on a larger one. */
function blobAddress(bytes, mime) {
  const view = new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return URL.createObjectURL(new Blob([view], { type: mime }));
}

/** A button that opens the file dialogue; `taken` gets what was chosen. */
function fileButton(text, accept, taken) {
  const input = element("input");
  input.type = "file";
  input.accept = accept;
  input.hidden = true;
  input.tabIndex = -1;
  input.setAttribute("aria-label", text);
  input.onchange = () => {
    if (input.files.length) taken(input.files[0]);
    input.value = ""; // the same file can be chosen again
  };
  const node = button("ot-button ot-small", text, () => input.click());
  const both = element("span");
  both.append(node, input);
  return both;
}

/** A file in parts; of one that is too large the first, which is refused. */
async function sendFile(model, op, file) {
  const told = { op, file: Math.random().toString(36).slice(2), of: file.size };
  const end = file.size > model.get("choices").largest ? 1 : Math.max(1, file.size);
  for (let at = 0; at < end; at += PART_BYTES) {
    model.send({ ...told, at }, undefined, [await file.slice(at, at + PART_BYTES).arrayBuffer()]);
  }
}

/** A part of the form that folds away; open where `open` was. */
function fold(title) {
  const root = element("details", "ot-fold");
  const summary = element("summary", "", title);
  const note = element("span", "ot-fold-note");
  summary.append(note);
  const body = element("div", "ot-fold-body");
  root.append(summary, body);
  return { root, body, note };
}

/** @param {{put: Function, input: HTMLInputElement}} strength its box, which the form reads. */
function createStart(model, strength) {
  const { root, body, note } = fold("Begin with a picture");
  const tools = element("div", "ot-buttons");
  const shown = button("ot-button ot-small", "The one shown", () => model.send({ op: "begin", id: model.get("picture").id }));
  const remove = button("ot-button ot-small", "Remove", () => model.send({ op: "begin" }));
  tools.append(fileButton("Choose file…", "image/*", (file) => sendFile(model, "start", file)), shown, remove);
  const offered = element("div", "ot-offered");
  offered.setAttribute("role", "group");
  offered.setAttribute("aria-label", "Earlier pictures and samples");
  let urls = [];
  let drawnOffer;
  const drawOffer = () => {
    const offer = model.get("starts");
    if (offer === drawnOffer) return;
    drawnOffer = offer;
    urls.forEach((address) => URL.revokeObjectURL(address));
    urls = offer.map((one) => blobAddress(one.image, one.mime));
    const tiles = offer.map((one, at) => {
      const node = button("ot-tile", undefined, () => model.send({ op: "begin", path: one.path }));
      node.append(Object.assign(new Image(), { src: urls[at], alt: "" }));
      node.title = one.words;
      node.setAttribute("aria-label", `Begin with ${one.words}`);
      return node;
    });
    offered.replaceChildren(...tiles);
    offered.hidden = !tiles.length;
  };
  root.addEventListener("toggle", () => root.open && model.send({ op: "starts" }));
  const path = element("input", "ot-input");
  path.placeholder = "A path; or paste, or drop a picture";
  path.setAttribute("aria-label", "Path of the picture to begin with");
  path.onkeydown = (event) => {
    if (event.key !== "Enter" || !path.value.trim()) return;
    model.send({ op: "begin", path: path.value.trim() }); // it stays until it is taken
  };
  const stage = element("div", "ot-easel");
  const image = new Image();
  image.alt = "The picture to begin with";
  let pending = 0;
  const flush = async () => {
    clearTimeout(pending);
    if (!pending) return;
    pending = 0;
    model.send({ op: "mask" }, undefined, [await mask.png()]);
  };
  const later = () => {
    clearTimeout(pending);
    pending = setTimeout(flush, SEND_MS);
  };
  const words = { label: "Mask: dimmed parts stay as they are", all: "Paint all" };
  const mask = createMask(stage, later, words);
  stage.addEventListener("pointermove", () => pending && later()); // a stroke goes on
  const none = button("ot-button ot-small", "No mask", () => {
    clearTimeout(pending);
    pending = 0;
    model.send({ op: "mask", path: "" });
  });
  const maskTools = element("div", "ot-fold-body");
  mask.tools.append(none);
  maskTools.append(element("p", "ot-caption", "Paint where it shall change; all else stays."), mask.tools);
  stage.append(image);
  body.append(tools, offered, path, stage, maskTools, strength.label);
  let url = "";
  let drawn;
  const open = async (start) => {
    URL.revokeObjectURL(url);
    url = blobAddress(start.image, start.mime);
    image.src = url;
    image.classList.toggle("ot-crisp", Math.max(start.width, start.height) <= CRISP);
    await image.decode();
    let painted = null;
    if (start.masked) {
      painted = new Image();
      painted.src = blobAddress(start.mask, "image/png");
      await painted.decode();
      URL.revokeObjectURL(painted.src);
    }
    mask.open(start.width, start.height, painted);
  };
  return {
    root,
    flush,
    draw() {
      const { abilities } = model.get("view");
      root.hidden = !abilities.image;
      drawOffer();
      const start = model.get("start");
      const there = Boolean(start.image);
      for (const node of [stage, strength.label, remove]) node.hidden = !there;
      maskTools.hidden = !there || !abilities.mask;
      able(shown, model.get("picture").id !== undefined);
      write(note, there ? (start.masked ? "with a mask" : "from a picture") : "");
      if (drawn === start || !there) {
        if (!there) drawn = undefined;
        return;
      }
      const own = drawn && drawn.of[0] === start.of[0] && start.masked && mask.dirty();
      if (drawn?.of[0] !== start.of[0]) path.value = "";
      drawn = start;
      root.open = true;
      if (!own) open(start); // what is being painted here stays as it is
    },
    close() {
      clearTimeout(pending);
      [url, ...urls].forEach((address) => URL.revokeObjectURL(address));
    },
  };
}
