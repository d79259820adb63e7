// Parts of the comparison of runs: its curves with a readout, and its samples with a large view.

const SVG = "http://www.w3.org/2000/svg";

function shape(tag, attributes, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

function drawCurves(svg, { width, height, frame, across, down, lines, label }) {
  const [left, , right] = frame;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("aria-label", label);
  svg.replaceChildren(
    ...down.flatMap(({ at, text }) => [
      shape("line", { x1: left, x2: right, y1: at, y2: at, class: "ot-grid" }),
      shape("text", { x: left - 8, y: at + 4, "text-anchor": "end" }, text),
    ]),
    ...across.map(({ at, text }) => shape("text", { x: at, y: height - 6, "text-anchor": "middle" }, text)),
    ...lines.map(({ points, colour, dash }) => shape("polyline", { points, stroke: colour, "stroke-dasharray": dash })),
  );
}

/** What the curves say at the step under the pointer, or under a mark that arrow keys move. */
function createReadout(svg) {
  const words = element("div", "ot-caption ot-readout");
  words.setAttribute("role", "status");
  const mark = shape("line", { class: "ot-cursor" });
  let view = null;
  let at = null; // in units of the drawing
  const value = (y) => {
    const [, top, , bottom] = view.frame;
    const [, , low, high] = view.ends;
    const one = high - ((y - top) / (bottom - top)) * (high - low);
    return Number((view.log ? 10 ** one : one).toPrecision(3)).toString();
  };
  const draw = () => {
    mark.remove();
    if (at === null || !view?.lines.length) return write(words, "");
    const [left, top, right, bottom] = view.frame;
    const step = Math.round(view.ends[0] + ((at - left) / (right - left)) * (view.ends[1] - view.ends[0]));
    const said = view.lines.map(({ name, points }) => {
      const near = points.split(" ").map((pair) => pair.split(",").map(Number));
      const [, y] = near.reduce((best, pair) => (Math.abs(pair[0] - at) < Math.abs(best[0] - at) ? pair : best));
      return `${name} ${value(y)}`;
    });
    write(words, `Step ${step}: ${said.join(" · ")}`);
    for (const [name, number] of Object.entries({ x1: at, x2: at, y1: top, y2: bottom })) mark.setAttribute(name, number);
    svg.append(mark);
  };
  const move = (to) => {
    if (!view?.lines.length) return;
    at = to === null ? null : Math.min(view.frame[2], Math.max(view.frame[0], to));
    draw();
  };
  svg.setAttribute("tabindex", "0");
  svg.dataset.lmSuppressShortcuts = "true";
  svg.addEventListener("pointermove", (event) => {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    move(point.x);
  });
  svg.addEventListener("pointerleave", () => move(null));
  svg.addEventListener("blur", () => move(null));
  svg.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -8, ArrowRight: 8 }[event.key];
    if (!by || !view) return;
    event.preventDefault();
    move((at ?? view.frame[0]) + by);
  });
  return {
    node: words,
    fill(now) {
      view = now;
      draw();
    },
  };
}

/** Samples of one prompt and seed, run beside run, in full size. */
function createLarge(root, model, urlOf) {
  const dialog = element("dialog", "ot ot-viewer");
  dialog.setAttribute("aria-label", "Samples of one prompt and seed");
  const prompt = element("p");
  const stage = element("div", "ot-viewer-images");
  const close = button("ot-button", "Close", () => dialog.close());
  const head = element("div", "ot-viewer-head");
  head.append(prompt, close);
  dialog.append(head, stage);
  const images = new Map(); // id -> its image
  const full = [];
  const received = (message, buffers) => {
    const image = images.get(message.id);
    if (message.op !== "full" || !image) return;
    const { buffer, byteOffset, byteLength } = buffers[0];
    image.src = URL.createObjectURL(new Blob([new Uint8Array(buffer, byteOffset, byteLength)], { type: message.mime }));
    full.push(image.src);
  };
  model.on("msg:custom", received);
  dialog.onclick = (event) => {
    if (event.target === dialog) dialog.close(); // the backdrop
  };
  dialog.onclose = () => {
    full.splice(0).forEach((url) => URL.revokeObjectURL(url));
    images.clear();
  };
  root.append(dialog);
  return {
    open({ prompt: text, seed, cells }, names) {
      prompt.textContent = `${text} · seed ${seed}`;
      images.clear();
      stage.replaceChildren(
        ...cells.map((one, index) => {
          const box = element("figure");
          if (!one?.image.byteLength) {
            box.append(element("figcaption", "", `${names[index]}: no picture`));
            return box;
          }
          const image = new Image();
          image.src = urlOf(one);
          image.alt = `${names[index]}, step ${one.step}`;
          image.classList.toggle("ot-crisp", one.width > 0 && one.width <= 128);
          images.set(one.id, image);
          if (!one.whole) model.send({ op: "full", id: one.id });
          box.append(image, element("figcaption", "", `${names[index]} · step ${one.step}`));
          return box;
        }),
      );
      dialog.showModal();
      close.focus();
    },
    close() {
      model.off("msg:custom", received);
      dialog.close();
    },
  };
}

/** Pictures of the matrix; addresses of those that are gone are given back. */
function createPictures() {
  const urls = new Map();
  const url = (one) => {
    const { buffer, byteOffset, byteLength } = one.image;
    if (!urls.has(one.id)) {
      urls.set(one.id, URL.createObjectURL(new Blob([new Uint8Array(buffer, byteOffset, byteLength)], { type: one.mime })));
    }
    return urls.get(one.id);
  };
  return {
    url,
    cell(one, prompt, open) {
      const node = element("td");
      if (!one) return cell("td", "–");
      if (!one.image.byteLength) return cell("td", "the file is gone");
      const image = new Image();
      image.src = url(one);
      image.alt = `${prompt}, step ${one.step}`;
      image.classList.toggle("ot-crisp", one.width > 0 && one.width <= 128);
      const large = button("ot-tile", undefined, open);
      large.setAttribute("aria-label", `Large: ${prompt}, step ${one.step}`);
      large.append(image);
      node.append(large, element("small", "", `step ${one.step}`));
      return node;
    },
    clear() {
      for (const url of urls.values()) URL.revokeObjectURL(url);
      urls.clear();
    },
  };
}
