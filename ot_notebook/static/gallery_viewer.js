// The large view of samples: step by step, zoomed, and beside, over or against any other of any run.

const CRISP_PX = 128; // smaller pictures show their pixels: blurred, a 64 px drawing looks broken
const GAIN = 4; // of the difference: small changes are what one looks for
const WAYS = [
  ["alone", "Alone"],
  ["beside", "Side by side"],
  ["slider", "Slider"],
  ["difference", "Difference"],
];

/** A comm buffer is a DataView or a typed array, by platform; it may be a window on a larger one. */
function address(bytes, mime) {
  const view = new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return URL.createObjectURL(new Blob([view], { type: mime }));
}

function facts(tile) {
  const size = tile.width ? ` · ${tile.width} × ${tile.height} px` : tile.image === null ? "" : " · the file cannot be read";
  return `step ${tile.step} · epoch ${tile.epoch} · seed ${tile.seed}${tile.raw ? " · plain weights" : ""}${size}`;
}

/** Zoom with the wheel or keys, move by dragging; all pictures of a stage move together. */
function createZoom(stage) {
  let [scale, x, y] = [1, 0, 0];
  let held = null;
  const apply = () => {
    stage.style.setProperty("--ot-zoom", `translate(${x}px, ${y}px) scale(${scale})`);
    stage.classList.toggle("ot-zoomed", scale > 1);
  };
  const by = (factor, at = { x: 0, y: 0 }) => {
    const next = Math.min(16, Math.max(1, scale * factor));
    x = next === 1 ? 0 : at.x - ((at.x - x) * next) / scale; // what is under the pointer stays there
    y = next === 1 ? 0 : at.y - ((at.y - y) * next) / scale;
    scale = next;
    apply();
  };
  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    const box = (event.target.closest(".ot-frame") ?? stage).getBoundingClientRect();
    const at = { x: event.clientX - box.left - box.width / 2, y: event.clientY - box.top - box.height / 2 };
    by(event.deltaY < 0 ? 1.25 : 0.8, at);
  }, { passive: false });
  stage.addEventListener("pointerdown", (event) => {
    if (scale === 1 || event.target.type === "range") return;
    held = [event.clientX - x, event.clientY - y];
    stage.setPointerCapture(event.pointerId);
  });
  stage.addEventListener("pointermove", (event) => {
    if (held) [x, y] = [event.clientX - held[0], event.clientY - held[1]];
    if (held) apply();
  });
  stage.addEventListener("pointerup", () => (held = null));
  apply();
  return { by, reset: () => by(0) };
}

/** Pixels of `one` minus those of `other`, times GAIN, on a canvas; and their mean in words. */
async function drawDifference(canvas, one, other) {
  const images = await Promise.all([one, other].map((src) => Object.assign(new Image(), { src })).map((image) => image.decode().then(() => image)));
  const [width, height] = [images[0].naturalWidth, images[0].naturalHeight];
  const [a, b] = images.map((image) => {
    const sheet = new OffscreenCanvas(width, height).getContext("2d");
    sheet.drawImage(image, 0, 0, width, height);
    return sheet.getImageData(0, 0, width, height);
  });
  let sum = 0;
  for (let i = 0; i < a.data.length; i += 4) {
    for (let c = 0; c < 3; c += 1) {
      const apart = Math.abs(a.data[i + c] - b.data[i + c]);
      sum += apart;
      a.data[i + c] = Math.min(255, GAIN * apart);
    }
  }
  [canvas.width, canvas.height] = [width, height];
  canvas.getContext("2d").putImageData(a, 0, 0);
  return `mean difference ${((sum / (width * height * 3)) / 2.55).toFixed(1)}% · shown ${GAIN} times as strong`;
}

/**
 * @param {HTMLElement} root where the dialog is put
 * @param model the widget's
 * @param store thumbnails and rows: `url(tile)`, `want(tile)`, `row(tile)`, `toggle(tile)`, `isChosen(tile)`
 */
function createViewer(root, model, store) {
  const dialog = element("dialog", "ot ot-viewer ot-lightbox");
  dialog.setAttribute("aria-label", "Sample");
  const prompt = element("p");
  const stage = element("div", "ot-viewer-images");
  const zoom = createZoom(stage);
  const words = element("span");
  words.setAttribute("role", "status");
  const full = new Map(); // id -> address of the picture in full size
  const asked = new Set();
  const runs = new Map(); // key of another run -> its samples
  let row = []; // tiles of the prompt, oldest first
  let at = 0;
  let way = "alone";
  let other = null; // the tile that this one is laid against; null: the first of its prompt
  let split = 50;
  let note = "";

  const partner = () => other ?? row[0];
  const source = (tile) => {
    if (!tile.whole && !full.has(tile.id) && !asked.has(tile.id)) {
      asked.add(tile.id);
      model.send({ op: "full", id: tile.id });
    }
    return full.get(tile.id) ?? store.url(tile) ?? "";
  };
  const picture = (tile) => {
    const image = new Image();
    image.src = source(tile);
    image.alt = `${tile.prompt}, step ${tile.step}`;
    image.draggable = false;
    image.classList.toggle("ot-crisp", tile.width > 0 && tile.width <= CRISP_PX);
    return image;
  };
  const figure = (content, text) => {
    const box = element("figure");
    const frame = element("div", "ot-frame");
    frame.append(...content);
    box.append(frame, element("figcaption", "", text));
    return box;
  };
  const nameOf = (tile) => (tile.run ? `${tile.run} · step ${tile.step}` : `step ${tile.step}`);

  const drawSlider = (tile, against) => {
    const under = picture(tile);
    const over = element("div", "ot-over"); // cuts, and not the picture: the cut stays while one zooms
    over.append(picture(against));
    const bar = element("input", "ot-split");
    Object.assign(bar, { type: "range", min: 0, max: 100, step: 0.5, value: split });
    bar.setAttribute("aria-label", "Where one picture ends and the other begins");
    const cut = () => {
      split = Number(bar.value);
      stage.style.setProperty("--ot-split", `${split}%`);
    };
    bar.oninput = cut;
    cut();
    return figure([under, over, element("i", "ot-cut"), bar], `left ${nameOf(against)} · right ${nameOf(tile)}`);
  };
  const drawStage = () => {
    const tile = row[at];
    const against = partner();
    if (way === "alone") return [figure([picture(tile)], nameOf(tile))];
    if (way === "beside") return [against, tile].map((one) => figure([picture(one)], nameOf(one)));
    if (way === "slider") return [drawSlider(tile, against)];
    const canvas = element("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `Where step ${tile.step} differs from ${nameOf(against)}`);
    canvas.classList.toggle("ot-crisp", tile.width > 0 && tile.width <= CRISP_PX);
    const box = figure([canvas], `${nameOf(tile)} minus ${nameOf(against)}`);
    const [one, two] = [source(tile), source(against)];
    if (one && two) {
      drawDifference(canvas, one, two).then(
        (text) => (box.lastElementChild.textContent += ` · ${text}`),
        () => (box.lastElementChild.textContent += " · one of them cannot be read"),
      );
    }
    return [box];
  };
  const draw = () => {
    const tile = row[at];
    store.want([tile, partner()]);
    prompt.textContent = tile.prompt;
    words.textContent = note || facts(tile);
    stage.replaceChildren(...drawStage());
    stage.dataset.way = way;
    able(older, at > 0);
    able(newer, at < row.length - 1);
    scrub.max = row.length - 1;
    scrub.value = at;
    scrub.disabled = row.length < 2;
    scrub.setAttribute("aria-valuetext", `step ${tile.step}`);
    for (const node of ways.children) node.setAttribute("aria-pressed", String(node.dataset.way === way));
    against.hidden = way === "alone";
    pick.setAttribute("aria-pressed", String(store.isChosen(tile)));
    write(pick, store.isChosen(tile) ? "Selected" : "Select");
    use.hidden = !model.get("can_use");
  };
  const go = (to) => {
    at = Math.min(row.length - 1, Math.max(0, to));
    note = "";
    draw();
  };

  // what a sample is laid against: a run, a prompt, a step
  const runOf = element("select", "ot-input");
  const promptOf = element("select", "ot-input");
  const stepOf = element("select", "ot-input");
  runOf.setAttribute("aria-label", "Run to compare with");
  promptOf.setAttribute("aria-label", "Prompt to compare with");
  stepOf.setAttribute("aria-label", "Step to compare with");
  const against = element("div", "ot-opposite");
  against.append(element("span", "", "with"), runOf, promptOf, stepOf);
  const option = (value, text) => Object.assign(element("option", "", text), { value });
  const pool = () => (runOf.value ? (runs.get(runOf.value) ?? []) : store.all());
  const listPrompts = () => {
    const names = [...new Set(pool().map((tile) => tile.prompt))];
    promptOf.replaceChildren(...names.map((name) => option(name, name)));
    if (names.includes(row[at]?.prompt)) promptOf.value = row[at].prompt;
    listSteps();
  };
  const listSteps = () => {
    const of = pool().filter((tile) => tile.prompt === promptOf.value);
    stepOf.replaceChildren(...of.map((tile) => option(tile.id, `step ${tile.step}${tile.raw ? ", plain weights" : ""}`)));
    if (runOf.value) stepOf.selectedIndex = of.length - 1; // the newest of another run, the first of this
    choose();
  };
  const choose = () => {
    other = pool().find((tile) => String(tile.id) === stepOf.value) ?? null;
    if (row.length) draw();
  };
  runOf.onchange = () => {
    if (!runOf.value || runs.has(runOf.value)) return listPrompts();
    model.send({ op: "run", key: runOf.value });
  };
  promptOf.onchange = listSteps;
  stepOf.onchange = choose;

  const older = button("ot-button", "‹ Older", () => usable(older) && go(at - 1));
  const newer = button("ot-button", "Newer ›", () => usable(newer) && go(at + 1));
  const scrub = element("input", "ot-scrub");
  Object.assign(scrub, { type: "range", min: 0, step: 1 });
  scrub.setAttribute("aria-label", "Step of this prompt");
  scrub.oninput = () => go(Number(scrub.value));
  const ways = element("div", "ot-segments");
  ways.setAttribute("role", "group");
  ways.setAttribute("aria-label", "How to compare");
  for (const [name, label] of WAYS) {
    const node = button("", label, () => {
      if (way === "alone" && name !== "alone") model.send({ op: "runs" });
      way = name;
      draw();
    });
    node.dataset.way = name;
    ways.append(node);
  }
  const pick = button("ot-button", "Select", () => {
    store.toggle(row[at]);
    draw();
  });
  const use = button("ot-button", "Use these settings", () => model.send({ op: "use", id: row[at].id }));
  use.title = "Add them to the samples of the job";
  const where = button("ot-button", "Reveal file", () => model.send({ op: "where", id: row[at].id }));
  where.title = "Show and copy the path of the file";
  const zooms = ["−", "+", "1:1"].map((text, index) => button("ot-button ot-small", text, () => (index === 2 ? zoom.reset() : zoom.by(index ? 1.6 : 0.625))));
  ["Zoom out", "Zoom in", "Whole picture"].forEach((label, index) => zooms[index].setAttribute("aria-label", label));
  const close = button("ot-button", "Close", () => dialog.close());
  const head = element("div", "ot-viewer-head");
  const tools = element("div", "ot-buttons");
  tools.append(ways, ...zooms, close);
  head.append(prompt, tools);
  const moves = element("div", "ot-viewer-moves");
  moves.append(older, scrub, newer);
  const foot = element("div", "ot-viewer-foot");
  const deeds = element("div", "ot-buttons");
  deeds.append(pick, use, where);
  foot.append(words, deeds);
  dialog.append(head, against, stage, moves, foot);

  dialog.onkeydown = (event) => {
    if (["INPUT", "SELECT"].includes(event.target.tagName)) return; // these have keys of their own
    const deed = {
      ArrowLeft: () => go(at - 1),
      ArrowRight: () => go(at + 1),
      Home: () => go(0),
      End: () => go(row.length - 1),
      "+": () => zoom.by(1.6),
      "-": () => zoom.by(0.625),
      0: () => zoom.reset(),
    }[event.key];
    if (!deed) return;
    event.preventDefault();
    deed();
  };
  dialog.onclick = (event) => {
    if (event.target === dialog) dialog.close(); // the backdrop
  };
  dialog.onclose = () => {
    for (const url of full.values()) URL.revokeObjectURL(url);
    full.clear();
    asked.clear();
    zoom.reset();
  };
  const received = (message, buffers) => {
    if (!dialog.open) return;
    const now = row[at].id;
    if (message.op === "full") {
      full.set(message.id, address(buffers[0], message.mime));
      if (message.id === now || message.id === partner().id) draw();
    } else if (message.op === "runs") {
      const chosen = runOf.value;
      runOf.replaceChildren(option("", "this run"), ...message.runs.map(({ key, label }) => option(key, label)));
      runOf.value = chosen;
      if (!other) listPrompts();
    } else if (message.op === "run") {
      const name = [...runOf.options].find((one) => one.value === message.key)?.textContent ?? "";
      runs.set(message.key, message.samples.map((one) => ({ ...one, image: null, run: name })));
      if (runOf.value === message.key) listPrompts();
    } else if (message.op === "used" && message.id === now) {
      note = "Its settings are now one of the samples of the job.";
      draw();
    } else if (message.op === "where" && message.id === now) {
      note = message.path;
      navigator.clipboard?.writeText(message.path).catch(() => {}); // the path is on the page in any case
      draw();
    } else if (message.op === "gone" && message.id === now) {
      words.textContent = message.why;
    }
  };
  model.on("msg:custom", received);
  root.append(dialog);
  return {
    open(tiles, index) {
      [row, at, other, note] = [tiles, index, null, ""];
      runOf.replaceChildren(option("", "this run"));
      if (way !== "alone") model.send({ op: "runs" });
      draw();
      dialog.showModal();
      (usable(newer) ? newer : close).focus();
    },
    /** Pictures or rows have changed. */
    renew() {
      if (!dialog.open) return;
      const { id } = row[at];
      row = store.row(row[at]);
      at = Math.max(0, row.findIndex((tile) => tile.id === id));
      if (row.length) draw();
    },
    close() {
      model.off("msg:custom", received);
      dialog.close();
    },
  };
}
