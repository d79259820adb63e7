// Samples of a run, by prompt, newest first. Python holds the pictures; this file draws them.

/** A comm buffer is a DataView or a typed array, by platform; it may be a window on a larger one. */
function address(bytes, mime) {
  const view = new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return URL.createObjectURL(new Blob([view], { type: mime }));
}

const CRISP_PX = 128; // smaller pictures show their pixels: blurred, a 64 px drawing looks broken

function facts(tile) {
  const size = tile.width ? `${tile.width} × ${tile.height} px` : "the file cannot be read";
  return `step ${tile.step} · epoch ${tile.epoch} · seed ${tile.seed} · ${size}`;
}

/** The large view: one sample, on request beside the first of its prompt. */
function createViewer(root, model, thumbnail) {
  const dialog = element("dialog", "ot ot-viewer");
  dialog.setAttribute("aria-label", "Sample");
  const prompt = element("p");
  const images = element("div", "ot-viewer-images");
  const words = element("span");
  const full = new Map(); // id -> address of the picture in full size
  let row = []; // tiles of the prompt, oldest first
  let at = 0;
  let comparing = false;

  const figure = (tile) => {
    const box = element("figure");
    const image = new Image();
    image.src = full.get(tile.id) ?? thumbnail(tile);
    image.alt = `${tile.prompt}, step ${tile.step}`;
    image.classList.toggle("ot-crisp", tile.width > 0 && tile.width <= CRISP_PX);
    box.append(image, element("figcaption", "", `step ${tile.step}`));
    if (!tile.whole && tile.image.byteLength && !full.has(tile.id)) model.send({ op: "full", id: tile.id });
    return box;
  };
  const draw = () => {
    const tile = row[at];
    prompt.textContent = tile.prompt;
    words.textContent = facts(tile);
    images.replaceChildren(...(comparing && at > 0 ? [row[0], tile] : [tile]).map(figure));
    older.disabled = at === 0;
    newer.disabled = at === row.length - 1;
    compare.disabled = at === 0;
    compare.setAttribute("aria-pressed", String(comparing));
  };
  const go = (by) => {
    at = Math.min(row.length - 1, Math.max(0, at + by));
    draw();
  };
  const older = button("ot-button", "‹ Older", () => go(-1));
  const newer = button("ot-button", "Newer ›", () => go(1));
  const compare = button("ot-button", "Compare with the first", () => {
    comparing = !comparing;
    draw();
  });
  const close = button("ot-button", "Close", () => dialog.close());
  const head = element("div", "ot-viewer-head");
  head.append(prompt, close);
  const moves = element("div", "ot-buttons");
  moves.append(older, newer, compare);
  const foot = element("div", "ot-viewer-foot");
  foot.append(words, moves);
  dialog.append(head, images, foot);
  dialog.onkeydown = (event) => {
    if (event.key === "ArrowLeft") go(-1);
    if (event.key === "ArrowRight") go(1);
  };
  dialog.onclick = (event) => {
    if (event.target === dialog) dialog.close(); // the backdrop
  };
  dialog.onclose = () => {
    for (const url of full.values()) URL.revokeObjectURL(url);
    full.clear();
  };
  const received = (message, buffers) => {
    if (!dialog.open) return;
    if (message.op === "full") {
      full.set(message.id, address(buffers[0], message.mime));
      if (row.some((tile) => tile.id === message.id)) draw();
    } else if (message.op === "gone" && row[at].id === message.id) {
      words.textContent = message.why;
    }
  };
  model.on("msg:custom", received);
  root.append(dialog);
  return {
    open(tiles, index) {
      [row, at] = [tiles, index];
      draw();
      dialog.showModal();
      newer.disabled ? close.focus() : newer.focus();
    },
    close() {
      model.off("msg:custom", received);
      dialog.close();
    },
  };
}

export default () => {
  let line;
  return {
    initialize({ model }) {
      line = connect(model);
      return () => line.close();
    },
    render({ model, el }) {
      const root = element("div", "ot ot-gallery");
      const heading = element("div", "ot-title");
      const note = element("span", "ot-caption");
      heading.append(element("h3", "", "Samples"), note);
      const prompts = element("div", "ot-prompts");
      const empty = element("div", "ot-empty");
      empty.style.height = "150px";
      empty.append(
        element("span", "", "Samples appear here."),
        element("small", "", "Each prompt keeps its first and its latest."),
      );
      root.append(heading, empty, prompts);
      el.append(root);

      const addresses = new Map(); // tile id -> address of its thumbnail
      const tiles = new Map(); // tile id -> its button
      const cards = new Map(); // prompt -> its card
      const thumbnail = (tile) => {
        if (!addresses.has(tile.id) && tile.image.byteLength) {
          addresses.set(tile.id, address(tile.image, tile.mime));
        }
        return addresses.get(tile.id) ?? "";
      };
      const viewer = createViewer(root, model, thumbnail);

      const makeTile = (tile) => {
        const node = button("ot-tile");
        const image = new Image();
        image.src = thumbnail(tile);
        image.alt = "";
        image.classList.toggle("ot-crisp", tile.width > 0 && tile.width <= CRISP_PX);
        node.append(image, element("small"));
        return node;
      };
      const place = (tile, row, word) => {
        if (!tiles.has(tile.id)) tiles.set(tile.id, makeTile(tile));
        const node = tiles.get(tile.id);
        node.onclick = () => viewer.open(row, row.indexOf(tile));
        node.title = facts(tile);
        node.setAttribute("aria-label", `${word} ${tile.prompt}, ${facts(tile)}`.trim());
        const label = node.lastElementChild;
        if (word) label.replaceChildren(element("b", "", word), ` step ${tile.step}`);
        else label.textContent = String(tile.step);
        return node;
      };
      const drawCard = (prompt, row) => {
        if (!cards.has(prompt)) {
          const card = element("section", "ot-prompt");
          card.append(element("h4", "", prompt), element("div", "ot-pair"), element("div", "ot-strip"));
          cards.set(prompt, card);
        }
        const card = cards.get(prompt);
        const ends = row.length > 1 ? [row[0], row[row.length - 1]] : [row[0]];
        const strip = card.querySelector(".ot-strip");
        arrange(card.children[1], [
          ...ends.map((tile, index) => place(tile, row, row.length > 1 ? ["First", "Latest"][index] : "First")),
          strip,
        ]);
        arrange(strip, row.slice(1, -1).reverse().map((tile) => place(tile, row, "")));
        return card;
      };
      const draw = () => {
        const all = [...model.get("archive"), ...model.get("recent")];
        const groups = new Map();
        for (const tile of all) groups.set(tile.prompt, [...(groups.get(tile.prompt) ?? []), tile]);
        const ids = new Set(all.map((tile) => tile.id));
        for (const id of [...tiles.keys()].filter((id) => !ids.has(id))) {
          tiles.delete(id);
          URL.revokeObjectURL(addresses.get(id));
          addresses.delete(id);
        }
        for (const prompt of [...cards.keys()].filter((prompt) => !groups.has(prompt))) cards.delete(prompt);
        arrange(prompts, [...groups].map(([prompt, row]) => drawCard(prompt, row)));
        empty.hidden = all.length > 0;
        empty.style.display = all.length ? "none" : "";
        note.textContent = model.get("note");
      };
      let queued = false; // archive and recent change together: draw them once
      const drawSoon = () => {
        if (queued) return;
        queued = true;
        queueMicrotask(() => {
          queued = false;
          draw();
        });
      };
      const watched = ["change:archive", "change:recent", "change:note"];
      watched.forEach((event) => model.on(event, drawSoon));
      draw();
      const hidden = line.shown();
      return () => {
        watched.forEach((event) => model.off(event, drawSoon));
        viewer.close();
        for (const url of addresses.values()) URL.revokeObjectURL(url);
        hidden();
      };
    },
  };
};
