// The picture large, beside another, and those before it. Joined in front of inference.js.

const EDGE = 3; // of the strip of earlier pictures, in px

/** Two pictures on one another, the border between them where the slider is; or the map of where they differ. */
function createPair(model) {
  const root = element("div", "ot-versus");
  const stage = element("div", "ot-versus-stage");
  const [base, top, map] = [new Image(), new Image(), new Image()];
  [base, top, map].forEach((image) => (image.className = "ot-large"));
  top.classList.add("ot-versus-top");
  stage.append(base, top, map);
  const line = element("div", "ot-versus-line");
  const slider = Object.assign(element("input"), { type: "range", min: 0, max: 100, value: 50 });
  slider.setAttribute("aria-label", "Border between the two pictures");
  slider.oninput = () => root.style.setProperty("--ot-cut", `${slider.value}%`);
  const choice = element("div", "ot-segments");
  const words = element("span", "ot-caption");
  let mode = "slider";
  const choose = (name) => {
    mode = name;
    [...choice.children].forEach((one) => one.setAttribute("aria-pressed", String(one.dataset.mode === name)));
    map.hidden = mode !== "map";
    for (const node of [base, top, slider]) node.hidden = mode === "map";
    words.hidden = mode !== "map";
  };
  for (const [name, text] of [["slider", "A | B"], ["map", "Difference"]]) {
    const one = button("", text, () => choose(name));
    one.dataset.mode = name;
    choice.append(one);
  }
  line.append(choice, slider, words, button("ot-button ot-small", "Done", () => model.send({ op: "beside" })));
  root.append(stage, line);
  choose(mode);
  let urls = [];
  let drawn;
  return {
    root,
    /** Whether there is a pair to show. */
    draw() {
      const [picture, other] = [model.get("picture"), model.get("other")];
      const there = other.id !== undefined && other.id !== picture.id;
      root.hidden = !there;
      if (!there || drawn === other) return there;
      drawn = other;
      urls.forEach((url) => URL.revokeObjectURL(url));
      urls = [
        blobAddress(other.image, other.mime),
        blobAddress(picture.image, picture.mime),
        blobAddress(other.difference, other.difference_mime),
      ];
      [base.src, top.src, map.src] = urls;
      const crisp = Math.max(picture.width, picture.height) <= CRISP;
      for (const image of [base, top, map]) image.classList.toggle("ot-crisp", crisp);
      base.alt = `A: ${other.words}`;
      top.alt = `B: ${picture.words}`;
      map.alt = "Where A and B differ, bright where they differ most";
      write(words, other.distance);
      slider.oninput();
      return there;
    },
    close() {
      urls.forEach((url) => URL.revokeObjectURL(url));
    },
  };
}

/** A slider over the pictures of the last grid. */
function createSeries(model) {
  const root = element("label", "ot-series");
  const words = element("span");
  const slider = Object.assign(element("input"), { type: "range", min: 0 });
  root.append(words, slider);
  slider.oninput = () => {
    const { series } = model.get("view");
    const one = series[Number(slider.value)];
    write(words, one.label);
    slider.setAttribute("aria-valuetext", one.label);
    model.send({ op: "pick", id: one.id });
  };
  return {
    root,
    draw() {
      const { series } = model.get("view");
      const at = series.findIndex((one) => one.id === model.get("picture").id);
      root.hidden = series.length < 2;
      if (root.hidden) return;
      slider.max = series.length - 1;
      if (slider !== document.activeElement && at >= 0) slider.value = at;
      write(words, at >= 0 ? series[at].label : `The last ${series.length} of a grid`);
    },
  };
}

function createShow(model) {
  const root = element("div", "ot-draw-show");
  const figure = element("figure");
  const image = new Image();
  image.className = "ot-large";
  const preview = new Image();
  preview.className = "ot-large ot-preview";
  const caption = element("figcaption");
  const title = element("b");
  const words = element("span");
  caption.append(title, words);
  const pair = createPair(model);
  const film = element("video", "ot-large");
  Object.assign(film, { controls: true, loop: true, muted: true, playsInline: true });
  film.autoplay = !window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  figure.append(image, film, preview, pair.root, caption);
  const series = createSeries(model);
  const empty = element("div", "ot-empty");
  const hint = element("small");
  empty.append(element("span", "", "Pictures appear here."), hint);
  const send = (op, more) => () => model.send({ op, id: model.get("picture").id, ...more });
  const tools = element("div", "ot-buttons");
  const code = element("pre", "ot-code");
  code.tabIndex = 0;
  code.dataset.lmSuppressShortcuts = "true";
  code.setAttribute("aria-label", "What was copied");
  const copied = element("span", "ot-caption");
  copied.setAttribute("role", "status");
  const copy = element("select", "ot-input ot-copy");
  copy.setAttribute("aria-label", "Copy the settings of this picture");
  const kinds = [["", "Copy as…"], ["python", "Python"], ["web", "A1111 settings"], ["comfy", "ComfyUI workflow"], ["sample", "Sample definition"]];
  copy.append(...kinds.map(([value, text]) => Object.assign(element("option", "", text), { value })));
  copy.onchange = () => {
    if (copy.value) send("code", { as: copy.value })();
    copy.value = "";
  };
  const sample = button("ot-button ot-small", "Add to samples", send("sample"));
  tools.append(
    button("ot-button ot-small", "Use its settings", send("reuse", { seed: false })),
    button("ot-button ot-small", "Compare others with it", send("beside")),
    copy,
    sample,
    copied,
  );
  const past = element("div", "ot-past");
  past.setAttribute("role", "group");
  past.setAttribute("aria-label", "Earlier pictures");
  const sheet = element("figure", "ot-sheet");
  const sheetImage = new Image();
  const sheetBox = element("div", "ot-sheet-box");
  sheetBox.tabIndex = 0; // it may scroll, so a keyboard must reach it
  sheetBox.dataset.lmSuppressShortcuts = "true";
  sheetBox.setAttribute("role", "group");
  sheetBox.setAttribute("aria-label", "The whole grid");
  const sheetWords = element("figcaption");
  sheetBox.append(sheetImage);
  sheet.append(sheetBox, sheetWords);
  root.append(empty, figure, series.root, past, tools, code, sheet);
  const addresses = new Map();
  const thumbnail = (tile) => {
    if (!addresses.has(tile.id)) addresses.set(tile.id, blobAddress(tile.image, tile.mime));
    return addresses.get(tile.id);
  };
  const held = { large: "", film: "", preview: "", sheet: "" };
  const show = (name, target, state) => {
    URL.revokeObjectURL(held[name]);
    held[name] = blobAddress(state.image, state.mime ?? "image/png");
    target.src = held[name];
  };
  const drawWords = (prompt, text) => {
    write(title, prompt);
    title.title = prompt;
    write(words, text);
  };
  /** What there is of a picture, as large as the picture will be. */
  const drawPreview = (now) => {
    if (seen === now) return;
    seen = now;
    const { prompt, width, height } = model.get("settings");
    show("preview", preview, now);
    preview.alt = `What there is after step ${now.step} of ${now.total}`;
    preview.classList.toggle("ot-crisp", Math.max(width, height) <= CRISP);
    drawWords(prompt, `step ${now.step} of ${now.total}`);
  };
  let drawn;
  let drawnHistory;
  let drawnSheet;
  let seen;
  const drawCode = () => {
    const text = model.get("view").code;
    code.hidden = !text;
    if (text && text !== code.textContent) {
      const failed = () => write(copied, "Select it below to copy.");
      if (navigator.clipboard) navigator.clipboard.writeText(text).then(() => write(copied, "Copied."), failed);
      else failed();
    }
    if (!text) write(copied, "");
    write(code, text);
  };
  /** Forget the addresses of pictures that are no longer here. */
  const forget = (history) => {
    const here = new Set(history.map(({ id }) => id));
    for (const [id, url] of [...addresses].filter(([known]) => !here.has(known))) {
      URL.revokeObjectURL(url);
      addresses.delete(id);
    }
  };
  const drawPast = (picture) => {
    const history = model.get("history");
    past.hidden = !history.length;
    if (drawnHistory !== history) {
      drawnHistory = history;
      forget(history);
      past.replaceChildren(
        ...history.map((tile) => {
          const node = button("ot-tile", undefined, () => model.send({ op: "pick", id: tile.id }));
          const small = new Image();
          small.src = thumbnail(tile);
          small.alt = "";
          small.classList.toggle("ot-crisp", tile.small);
          node.append(small);
          node.dataset.id = tile.id;
          node.title = tile.words;
          node.setAttribute("aria-label", tile.words);
          return node;
        }),
      );
    }
    for (const node of past.children) {
      const shown = Number(node.dataset.id) === picture.id;
      if (shown && node.getAttribute("aria-pressed") !== "true") reveal(node);
      node.setAttribute("aria-pressed", String(shown));
    }
  };
  /** Scroll the strip, and nothing else, until a picture of it is in sight. */
  const reveal = (node) => {
    const [from, to] = [node.offsetLeft - past.offsetLeft, node.offsetLeft - past.offsetLeft + node.offsetWidth];
    if (from < past.scrollLeft || to > past.scrollLeft + past.clientWidth) past.scrollLeft = from - EDGE;
  };
  return {
    root,
    draw() {
      const picture = model.get("picture");
      const there = picture.id !== undefined;
      const now = model.get("preview");
      const { state } = model.get("view");
      const drawing = Boolean(now.image) && state === "drawing";
      preview.hidden = !drawing;
      if (drawing) drawPreview(now);
      tools.hidden = !there;
      figure.hidden = !there && !drawing;
      empty.hidden = there || drawing;
      write(hint, state === "empty" ? "Load a model first." : "Ctrl + Enter draws one.");
      drawPast(picture);
      sample.hidden = !model.get("view").job;
      drawCode();
      series.draw();
      const grid = model.get("sheet");
      sheet.hidden = !grid.image;
      if (grid.image && drawnSheet !== grid) {
        drawnSheet = grid;
        show("sheet", sheetImage, grid);
        sheetImage.alt = `Grid: ${grid.words}`;
        write(sheetWords, grid.words);
      }
      if (!there) return;
      const paired = pair.draw() && !drawing;
      pair.root.hidden = !paired;
      const isFilm = Boolean(picture.film?.byteLength);
      const moving = isFilm && !paired;
      image.hidden = paired || moving || drawing;
      film.hidden = !moving || drawing;
      if (film.hidden) film.pause();
      if (!drawing) drawWords(picture.prompt, picture.words);
      if (drawn === picture) return;
      drawn = picture;
      show("large", image, picture);
      if (isFilm) {
        show("film", film, { image: picture.film, mime: "video/mp4" });
        film.setAttribute("aria-label", `Film: ${picture.prompt}`);
      }
      image.alt = picture.prompt || "A picture without a prompt";
      image.classList.toggle("ot-crisp", Math.max(picture.width, picture.height) <= CRISP);
    },
    close() {
      pair.close();
      for (const url of [...Object.values(held), ...addresses.values()]) URL.revokeObjectURL(url);
    },
  };
}
