// One image: its caption by keyboard, its tags, its mask, what training makes of it.

const TOKENS_MS = 200;

/**
 * @param {HTMLElement} root
 * @param {object} model the widget.
 * @param {object} grid what `createGrid` gave.
 * @param {() => {found: number, tags: Array}} facts
 */
function createItemView(root, model, grid, facts) {
  const dialog = element("dialog", "ot ot-viewer ot-item-view");
  dialog.dataset.lmSuppressShortcuts = "true";
  dialog.setAttribute("aria-label", "Image");
  const name = element("p");
  const place = element("span", "ot-caption");
  const stage = element("div", "ot-stage");
  const image = new Image();
  const crop = element("div", "ot-crop");
  const strip = element("div", "ot-variations");
  const note = element("div", "ot-caption ot-stage-note");
  const text = element("textarea", "ot-input ot-caption-box");
  text.rows = 5;
  text.setAttribute("aria-label", "Caption; each line is an alternative");
  const chips = element("div", "ot-chips");
  const count = element("span", "ot-caption ot-tokens");
  const state = element("span", "ot-caption");
  const wrong = element("div", "ot-field-error");
  wrong.setAttribute("role", "alert");
  const remarks = element("div", "ot-remarks");
  const path = element("div", "ot-caption ot-path");
  const drafts = new Map(); // id -> text that could not be written
  let item = null;
  let at = 0;
  let was = "";
  let tab = "picture";
  let timer = 0;
  let pictureUrl = "";
  let variationUrls = [];

  const mask = createMask(stage, (dirty) => {
    write(state, dirty ? "Mask changed; saved when you leave" : "");
    maskSave.disabled = !dirty;
  });
  const tabs = element("div", "ot-segments");
  tabs.setAttribute("role", "group");
  tabs.setAttribute("aria-label", "View");
  for (const [key, label] of [["picture", "Picture"], ["crop", "Crop"], ["mask", "Mask"], ["variations", "Variations"]]) {
    const one = button("", label, () => show(key));
    one.dataset.tab = key;
    tabs.append(one);
  }
  const maskSave = button("ot-button ot-small", "Save mask", () => saveMask());
  const maskRemove = button("ot-button ot-small ot-danger", "Remove mask", () => {
    mask.saved();
    model.send({ op: "mask", id: item.id });
  });
  mask.tools.append(maskSave, maskRemove);

  const show = (key) => {
    tab = key;
    for (const one of tabs.children) one.setAttribute("aria-pressed", String(one.dataset.tab === key));
    const broken = !item?.picture;
    stage.hidden = key === "variations" || broken;
    strip.hidden = key !== "variations" || broken;
    crop.hidden = key !== "crop" || !item?.crop;
    mask.view.hidden = mask.tools.hidden = key !== "mask" || broken;
    if (!item) return;
    if (key === "variations" && !variationUrls.length) model.send({ op: "variations", id: item.id });
    const { crop: cut } = item;
    const lost = cut ? Math.round(100 * (1 - cut.width * cut.height)) : 0;
    const notes = {
      picture: "",
      crop: cut
        ? `Trains at ${cut.size}, scaled to ${Math.round(100 * cut.scale)} %. ` +
          (lost ? `${lost} % of the picture is cut off${item.jitter ? ", at a random place" : ""}.` : "Nothing is cut off.")
        : "It has no bucket.",
      mask: "Clear parts are learnt, dimmed ones are not. [ and ] change the brush.",
      variations: "As training may see it, with the concept's crop and changes.",
    };
    write(note, broken ? "This image cannot be read." : notes[key]);
  };
  // a text box knows one kind of line end; the file keeps its own, and is untouched if nothing else changed
  const plain = (words) => words.replace(/\r\n?/g, "\n");
  const changed = () => text.value !== plain(was);
  const outgoing = () => (was.includes("\r\n") ? text.value.replace(/\n/g, "\r\n") : text.value);
  const split = () =>
    text.value.split("\n").flatMap((line) => line.split(item.delimiter)).map((tag) => tag.trim()).filter(Boolean);
  const drawChips = () => {
    chips.replaceChildren(
      ...split().slice(0, 60).map((tag) => {
        const chip = element("span", "ot-tag", tag);
        const gone = button("ot-tag-x", "×", () => {
          const lines = text.value.split("\n").map((line) => {
            const tags = line.split(item.delimiter).map((one) => one.trim()).filter(Boolean);
            return tags.includes(tag) ? tags.filter((one) => one !== tag).join(`${item.delimiter} `) : line;
          });
          edit(lines.join("\n"));
        });
        gone.setAttribute("aria-label", `Remove the tag ${tag}`);
        gone.tabIndex = -1; // the text says the same by keyboard
        gone.disabled = text.readOnly;
        chip.append(gone);
        return chip;
      }),
    );
  };
  const drawTokens = ({ tokens, limit }) => {
    count.classList.toggle("ot-over", Boolean(limit && tokens > limit));
    const letters = `${text.value.length.toLocaleString()} characters`;
    write(count, tokens === null ? letters : limit ? `${tokens} of ${limit} tokens` : `${tokens} tokens`);
    count.title = limit && tokens > limit ? "The text encoder reads no more than its limit." : letters;
  };
  const edited = () => {
    drawChips();
    write(state, changed() ? "Saved when you leave" : "");
    clearTimeout(timer);
    const { id } = item;
    timer = setTimeout(() => model.send({ op: "tokens", id, text: text.value }), TOKENS_MS);
  };
  const edit = (value) => {
    text.value = value;
    edited();
  };
  const saveCaption = () => {
    if (!item || text.readOnly || !changed()) return;
    drafts.set(item.id, text.value);
    write(state, "Saving");
    const words = outgoing();
    model.send({ op: "caption", id: item.id, text: words, was });
    was = words;
  };
  const saveMask = async () => {
    if (!item || !mask.dirty()) return;
    const { id } = item;
    mask.saved();
    maskSave.disabled = true;
    const png = await mask.png();
    model.send({ op: "mask", id }, undefined, [png]);
  };
  const leave = () => {
    clearTimeout(timer);
    saveCaption();
    saveMask();
  };
  const ask = () => {
    const row = grid.row(at);
    if (row) model.send({ op: "open", id: row.id });
    else setTimeout(() => dialog.open && ask(), 60); // its description is on the way
  };
  const go = (by) => {
    const next = Math.min(facts().found - 1, Math.max(0, at + by));
    if (next === at) return;
    leave();
    at = next;
    grid.go(at);
    ask();
  };
  const freeUrls = () => {
    for (const url of [pictureUrl, ...variationUrls]) if (url) URL.revokeObjectURL(url);
    [pictureUrl, variationUrls] = ["", []];
    strip.replaceChildren();
  };
  const fill = async (message, buffers) => {
    const focused = document.activeElement === text || !item;
    item = message;
    freeUrls();
    write(name, item.name);
    write(place, `${(at + 1).toLocaleString()} of ${facts().found.toLocaleString()}`);
    was = item.caption;
    text.readOnly = Boolean(item.why);
    text.value = drafts.get(item.id) ?? item.caption;
    text.placeholder = item.why ? "" : "Describe the picture";
    write(wrong, item.why);
    write(state, changed() ? "Not saved yet" : "");
    drawChips();
    drawTokens(item);
    remarks.replaceChildren(...item.remarks.map((one) => element("div", "ot-remark", one)));
    const cached = CACHE[item.cache]?.[1];
    const film = item.seconds ? `film of ${item.seconds.toFixed(1)} s` : "";
    write(path, [`${item.width} × ${item.height} px`, film, cached, item.concept, item.path].filter(Boolean).join(" · "));
    older.disabled = at === 0;
    newer.disabled = at >= facts().found - 1;
    maskRemove.disabled = !item.mask;
    maskSave.disabled = true;
    if (item.picture) {
      pictureUrl = blobAddress(buffers[0], item.picture);
      image.src = pictureUrl;
      image.alt = item.caption || item.name;
      image.classList.toggle("ot-crisp", Math.max(item.width, item.height) <= 128);
      stage.style.aspectRatio = `${item.width} / ${item.height}`;
      stage.style.width = `min(100%, ${Math.round((440 * item.width) / item.height)}px)`;
      if (item.crop) {
        const cut = item.crop;
        Object.assign(crop.style, {
          left: `${100 * cut.left}%`, top: `${100 * cut.top}%`, width: `${100 * cut.width}%`, height: `${100 * cut.height}%`,
        });
      }
      const { id } = item;
      let shape = null;
      if (item.mask) {
        shape = new Image();
        shape.src = blobAddress(buffers[1], "image/png");
        await shape.decode().catch(() => (shape = null));
        if (shape) URL.revokeObjectURL(shape.src);
      }
      await image.decode().catch(() => null);
      if (item.id !== id) return; // one has gone on meanwhile
      mask.open(image.naturalWidth || 1, image.naturalHeight || 1, shape);
    }
    show(tab);
    if (focused && tab !== "mask") text.focus();
  };
  const received = (message, buffers) => {
    if (message.op === "saved") {
      drafts.delete(message.id);
      grid.update(message.row);
      if (item?.id === message.id) item.caption = message.text;
      if (item?.id === message.id && !changed()) write(state, "Saved");
    } else if (message.op === "masked") {
      grid.update(message.row);
      if (item?.id === message.id) {
        write(state, message.row.masked ? "Mask saved" : "Mask removed");
        if (!message.row.masked) model.send({ op: "open", id: message.id });
        maskRemove.disabled = !message.row.masked;
      }
    }
    if (!dialog.open) return;
    if (message.op === "item" && grid.row(at)?.id === message.id) fill(message, buffers);
    else if (message.op === "tokens" && item?.id === message.id) drawTokens(message);
    else if (message.op === "refused") {
      if (item?.id === message.id) was = item.caption; // it was not written after all
      write(wrong, message.why);
      write(state, "Not saved");
    } else if (message.op === "variations" && item?.id === message.id) {
      variationUrls = message.mimes.map((mime, index) => blobAddress(buffers[index], mime));
      strip.replaceChildren(
        ...variationUrls.map((url, index) => {
          const one = new Image();
          one.src = url;
          one.alt = `Variation ${index + 1}`;
          one.classList.toggle("ot-crisp", image.classList.contains("ot-crisp"));
          return one;
        }),
      );
    }
  };
  const older = button("ot-button", "‹ Previous", () => go(-1));
  older.title = "Page up";
  const newer = button("ot-button ot-primary", "Next ›", () => go(1));
  newer.title = "Page down";
  const close = button("ot-button", "Close", () => dialog.close());
  const addTag = element("input", "ot-input ot-tag-input");
  addTag.placeholder = "Add a tag";
  addTag.setAttribute("aria-label", "Add a tag");
  const known = element("datalist");
  known.id = `ot-tags-${Math.random().toString(36).slice(2)}`;
  addTag.setAttribute("list", known.id);
  addTag.onfocus = () =>
    known.replaceChildren(...facts().tags.map(([tag]) => Object.assign(element("option"), { value: tag })));
  addTag.onkeydown = (event) => {
    if (event.key !== "Enter" || !addTag.value.trim() || text.readOnly) return;
    event.preventDefault();
    const tags = split();
    if (!tags.includes(addTag.value.trim())) {
      edit(text.value.trim() ? `${text.value.trimEnd()}${item.delimiter} ${addTag.value.trim()}` : addTag.value.trim());
    }
    addTag.value = "";
  };
  text.oninput = edited;
  text.onblur = saveCaption;
  const head = element("div", "ot-viewer-head");
  const title = element("div", "ot-item-title");
  title.append(name, place);
  head.append(title, close);
  const left = element("div", "ot-item-left");
  stage.append(image, crop);
  left.append(tabs, stage, strip, mask.tools, note);
  const right = element("div", "ot-item-right");
  const line = element("div", "ot-item-line");
  line.append(count, state);
  const moves = element("div", "ot-buttons");
  moves.append(older, newer);
  right.append(element("h4", "", "Caption"), text, line, wrong, chips, addTag, known, remarks, path, moves);
  const body = element("div", "ot-item-body");
  body.append(left, right);
  dialog.append(head, body);
  dialog.onkeydown = (event) => {
    const typing = event.target === text || event.target === addTag;
    const next = event.key === "PageDown" || (event.key === "Enter" && (event.ctrlKey || event.metaKey));
    const inMask = tab === "mask" && !typing;
    if (next) go(1);
    else if (event.key === "PageUp") go(-1);
    else if (!typing && event.target.type !== "range" && event.key === "ArrowRight") go(1);
    else if (!typing && event.target.type !== "range" && event.key === "ArrowLeft") go(-1);
    else if (inMask && event.key === "z" && (event.ctrlKey || event.metaKey)) mask.back();
    else if (inMask && "[]".includes(event.key)) mask.resize(event.key === "[" ? -8 : 8);
    else return;
    event.preventDefault();
  };
  dialog.onclick = (event) => {
    if (event.target === dialog) dialog.close(); // the backdrop
  };
  dialog.onclose = () => {
    leave();
    freeUrls();
    item = null;
    model.send({ op: "closed" });
    grid.node.focus();
  };
  model.on("msg:custom", received);
  root.append(dialog);
  return {
    open(index) {
      at = index;
      if (!dialog.open) dialog.showModal();
      grid.go(at);
      ask();
    },
    close() {
      model.off("msg:custom", received);
      if (dialog.open) dialog.close();
    },
  };
}
