// Painting a mask: what it takes in stays clear, all else is dimmed. Joined in front of what paints one.

const STROKES = 12; // steps back; each is a picture of a few megabytes

/**
 * @param {HTMLElement} stage holds the picture, whose size on the page the canvas takes.
 * @param {(dirty: boolean) => void} changed hears of each stroke.
 * @param {{label: string, all: string}} words what it is for.
 */
function createMask(stage, changed, words = { label: "Mask: dimmed parts are not learnt", all: "Learn all" }) {
  const view = element("canvas", "ot-mask-canvas");
  view.setAttribute("role", "img");
  view.setAttribute("aria-label", words.label);
  const shape = document.createElement("canvas"); // opaque where the picture is learnt
  const pen = shape.getContext("2d", { willReadFrequently: true });
  const tools = element("div", "ot-mask-tools");
  let past = [];
  let tool = "brush";
  let dirty = false;
  let blank = true; // no mask yet: all of the picture is learnt
  let last = null;

  const redraw = () => {
    const paper = view.getContext("2d");
    paper.clearRect(0, 0, view.width, view.height);
    paper.globalCompositeOperation = "source-over";
    paper.fillStyle = `rgb(16 12 40 / ${opacity.value}%)`;
    paper.fillRect(0, 0, view.width, view.height);
    paper.globalCompositeOperation = "destination-out";
    paper.drawImage(shape, 0, 0);
    undo.disabled = past.length === 0;
  };
  const whole = () => pen.getImageData(0, 0, shape.width, shape.height);
  const all = (learnt) => {
    pen.globalCompositeOperation = "source-over";
    pen.clearRect(0, 0, shape.width, shape.height);
    pen.fillStyle = "#fff";
    if (learnt) pen.fillRect(0, 0, shape.width, shape.height);
  };
  const remember = () => {
    past.push({ picture: whole(), blank, dirty });
    past = past.slice(-STROKES);
  };
  const touched = () => {
    dirty = true;
    blank = false;
    redraw();
    changed(true);
  };
  const act = (change) => {
    remember();
    change();
    touched();
  };
  const invert = () => {
    const picture = whole();
    for (let i = 3; i < picture.data.length; i += 4) picture.data[i] = 255 - picture.data[i];
    for (let i = 0; i < picture.data.length; i += 4) picture.data[i] = picture.data[i + 1] = picture.data[i + 2] = 255;
    pen.putImageData(picture, 0, 0);
  };
  /** Learn the region around a point, up to what is learnt already. */
  const fill = (x, y) => {
    const { width, height } = shape;
    const picture = whole();
    const alpha = (at) => picture.data[4 * at + 3];
    const waiting = [Math.floor(y) * width + Math.floor(x)];
    while (waiting.length) {
      const at = waiting.pop();
      if (alpha(at) >= 128) continue;
      picture.data.fill(255, 4 * at, 4 * at + 4);
      const column = at % width;
      if (column > 0) waiting.push(at - 1);
      if (column < width - 1) waiting.push(at + 1);
      if (at >= width) waiting.push(at - width);
      if (at < width * (height - 1)) waiting.push(at + width);
    }
    pen.putImageData(picture, 0, 0);
  };
  const place = (event) => {
    const box = view.getBoundingClientRect();
    const scale = shape.width / box.width;
    return { x: (event.clientX - box.left) * scale, y: (event.clientY - box.top) * scale, scale };
  };
  const stroke = (from, to) => {
    pen.globalCompositeOperation = tool === "erase" ? "destination-out" : "source-over";
    pen.strokeStyle = "#fff";
    pen.lineCap = "round";
    pen.lineWidth = Number(size.value) * to.scale;
    pen.beginPath();
    pen.moveTo(from.x, from.y);
    pen.lineTo(to.x + 0.01, to.y);
    pen.stroke();
    pen.globalCompositeOperation = "source-over";
  };
  view.onpointerdown = (event) => {
    if (event.button) return;
    event.preventDefault();
    const at = place(event);
    remember();
    if (blank) all(tool === "erase"); // the first stroke decides: learn this, or all but this
    if (tool === "fill") {
      fill(at.x, at.y);
    } else {
      view.setPointerCapture(event.pointerId);
      last = at;
      stroke(at, at);
    }
    touched();
  };
  view.onpointermove = (event) => {
    if (!last) return;
    const at = place(event);
    stroke(last, at);
    last = at;
    redraw();
  };
  view.onpointerup = view.onpointercancel = () => (last = null);

  const segments = element("div", "ot-segments");
  const choices = { brush: "Brush", erase: "Erase", fill: "Fill" };
  const choose = (name) => {
    tool = name;
    [...segments.children].forEach((one) => one.setAttribute("aria-pressed", String(one.dataset.tool === name)));
  };
  for (const [name, label] of Object.entries(choices)) {
    const one = button("", label, () => choose(name));
    one.dataset.tool = name;
    segments.append(one);
  }
  const range = (label, low, high, value) => {
    const box = element("label", "ot-range", label);
    const input = Object.assign(element("input"), { type: "range", min: low, max: high, value });
    box.append(input);
    tools.append(box);
    return input;
  };
  tools.append(segments);
  const size = range("Size", 4, 160, 40);
  const opacity = range("Dim", 20, 95, 70);
  opacity.oninput = redraw;
  const undo = button("ot-button ot-small", "Undo stroke", () => back());
  tools.append(
    button("ot-button ot-small", "Invert", () => act(invert)),
    button("ot-button ot-small", words.all, () => act(() => all(true))),
    undo,
  );
  const back = () => {
    const before = past.pop();
    if (!before) return;
    pen.putImageData(before.picture, 0, 0);
    ({ blank, dirty } = before);
    redraw();
    changed(dirty);
  };
  choose("brush");
  return {
    view,
    tools,
    back,
    dirty: () => dirty,
    saved() {
      dirty = false;
      past = past.map((one) => ({ ...one, dirty: true }));
    },
    resize: (by) => (size.value = Number(size.value) + by),
    /** Begin with a picture of `width` by `height` and its mask, an image or null. */
    open(width, height, mask) {
      for (const canvas of [view, shape]) [canvas.width, canvas.height] = [width, height];
      [past, dirty, blank] = [[], false, !mask];
      all(true);
      if (mask) {
        pen.drawImage(mask, 0, 0, width, height);
        const picture = whole();
        for (let i = 0; i < picture.data.length; i += 4) {
          picture.data[i + 3] = picture.data[i];
          picture.data[i] = picture.data[i + 1] = picture.data[i + 2] = 255;
        }
        pen.putImageData(picture, 0, 0);
      }
      redraw();
      stage.append(view);
    },
    /** The mask as a PNG: white where it is learnt, black elsewhere. */
    async png() {
      const out = document.createElement("canvas");
      [out.width, out.height] = [shape.width, shape.height];
      const paper = out.getContext("2d");
      paper.fillStyle = "#000";
      paper.fillRect(0, 0, out.width, out.height);
      paper.drawImage(shape, 0, 0);
      const blob = await new Promise((done) => out.toBlob(done, "image/png"));
      return blob.arrayBuffer();
    },
  };
}
