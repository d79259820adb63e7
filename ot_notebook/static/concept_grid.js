// Thumbnails of any number of images: only what one sees is asked for, drawn and kept.

const TILE = { width: 138, height: 184, gap: 10 };
const PAGE = 100; // images that are described at once
const THUMBS = 32; // pictures that are asked for at once
const KEPT_URLS = 1200;
const LOST_REPLY_MS = 8000;
const HIDDEN_MS = 400;
const CACHE = { // how the cache has an image: its sign, and words for it
  fresh: ["✓", "cached"],
  stale: ["↻", "changed since it was cached"],
  new: ["", "not cached yet"],
  error: ["", ""], // the other mark says what is wrong
};

/**
 * @param {object} model the widget.
 * @param {{open: (at: number) => void, selection: (size: number) => void}} on
 */
function createGrid(model, on) {
  const port = element("div", "ot-grid");
  port.tabIndex = 0;
  port.setAttribute("role", "listbox");
  port.setAttribute("aria-multiselectable", "true");
  port.setAttribute("aria-label", "Images. Enter opens one, space selects it.");
  const sheet = element("div", "ot-grid-sheet");
  sheet.setAttribute("role", "presentation");
  port.append(sheet);
  const client = Math.random().toString(36).slice(2);
  let head = { version: -1, epoch: -1, found: 0 };
  let columns = 1;
  let at = 0; // the image that keys act on
  let anchor = 0;
  const rows = new Map(); // place -> description
  const fresh = new Set(); // pages of rows that are as the kernel has them; others are shown till then
  const lists = new Map(); // page of rows -> the list that it is a page of
  const asked = new Map(); // page of rows -> when
  const urls = new Map(); // id -> address, the latest used last; "" for one that cannot be read
  const tiles = new Map(); // place -> node
  const selected = new Set(); // ids
  let inFlight = 0;
  let retry = 0;
  let extra = []; // ids whose pictures are wanted outside the grid

  const row = (place) => (lists.get(Math.floor(place / PAGE)) === head.list ? rows.get(place) : undefined);
  const pitch = () => TILE.height + TILE.gap;
  const span = () => {
    const first = Math.floor(port.scrollTop / pitch()) * columns;
    const shown = (Math.ceil(port.clientHeight / pitch()) + 1) * columns;
    return [first, Math.min(head.found, first + shown)];
  };
  const askRows = (first, last) => {
    for (let page = Math.floor(first / PAGE); page * PAGE < last; page += 1) {
      if (fresh.has(page) || Date.now() - (asked.get(page) ?? 0) < LOST_REPLY_MS) continue;
      asked.set(page, Date.now());
      model.send({ op: "rows", from: page * PAGE, to: (page + 1) * PAGE });
    }
  };
  const askThumbs = () => {
    if (Date.now() - inFlight < LOST_REPLY_MS) return;
    const [first, last] = span();
    const ids = [];
    for (let place = first; place < last && ids.length < THUMBS; place += 1) {
      const row = rows.get(place);
      if (row && !urls.has(row.id)) ids.push(row.id);
    }
    for (const id of extra) if (!urls.has(id) && ids.length < THUMBS) ids.push(id);
    if (!ids.length) return;
    inFlight = Date.now();
    model.send({ op: "thumbs", ids, epoch: head.epoch });
  };
  const makeTile = (place) => {
    const node = element("div", "ot-cell");
    node.setAttribute("role", "option");
    node.id = `${client}-${place}`;
    const frame = element("div", "ot-cell-frame");
    const image = new Image();
    image.alt = "";
    image.draggable = false;
    frame.append(image, element("span", "ot-cell-cache"), element("span", "ot-cell-mark"));
    node.append(frame, element("small"));
    node.onclick = (event) => {
      at = place;
      if (event.shiftKey) choose(anchor, place);
      else if (event.ctrlKey || event.metaKey) toggle(place);
      else on.open(place);
      if (!event.shiftKey) anchor = place;
      draw();
    };
    tiles.set(place, node);
    sheet.append(node);
    return node;
  };
  const fill = (node, place) => {
    const row = rows.get(place);
    const [frame, words] = node.children;
    const image = frame.firstElementChild;
    const url = row && urls.get(row.id);
    node.classList.toggle("ot-waits", !row || url === undefined);
    node.classList.toggle("ot-lost", url === "");
    node.classList.toggle("ot-at", place === at);
    const small = row && Math.max(row.width, row.height) <= 128;
    image.classList.toggle("ot-crisp", Boolean(small));
    if (url) {
      if (image.src !== url) image.src = url;
    } else image.removeAttribute("src");
    if (!row) {
      write(words, "");
      node.setAttribute("aria-label", `Image ${place + 1}, on its way`);
      return;
    }
    const missing = row.problems.find((kind) => kind.endsWith("caption") && kind !== "long caption");
    write(words, row.caption || (missing ? "no caption" : ""));
    words.classList.toggle("ot-none", !row.caption);
    const mark = frame.lastElementChild;
    mark.className = `ot-cell-mark${row.problems.length ? " ot-bad-mark" : row.masked ? " ot-mask-mark" : ""}`;
    write(mark, row.problems.length ? "!" : row.masked ? "◐" : "");
    const badge = frame.children[1];
    const [sign, state] = CACHE[row.cache] ?? ["", ""];
    badge.className = `ot-cell-cache ot-cache-${row.cache}`;
    const length = row.seconds ? `${row.seconds.toFixed(1)} s` : "";
    write(badge, [sign, length && `▶ ${length}`, row.twins ? `≈ ${row.twins}` : ""].filter(Boolean).join("  "));
    const twins = row.twins ? `looks like others of group ${row.twins}` : "";
    const remarks = [length && `film of ${length}`, ...row.problems, state, twins].filter(Boolean);
    node.title = [row.name, `${row.width} × ${row.height}`, ...remarks].join(" · ");
    node.setAttribute("aria-label", [row.name, row.caption, ...remarks].filter(Boolean).join(", "));
    node.setAttribute("aria-selected", String(selected.has(row.id)));
    node.setAttribute("aria-posinset", String(place + 1));
    node.setAttribute("aria-setsize", String(head.found));
  };
  const draw = () => {
    if (!port.clientWidth && head.found) {
      clearTimeout(retry); // out of sight, perhaps for an instant that the observer never sees
      retry = setTimeout(drawSoon, HIDDEN_MS);
      return;
    }
    columns = Math.max(1, Math.floor((port.clientWidth - TILE.gap) / (TILE.width + TILE.gap)));
    const space = Math.max(0, (port.clientWidth - TILE.gap - columns * TILE.width) / columns);
    const height = Math.ceil(head.found / columns) * pitch() + TILE.gap;
    sheet.style.height = `${height}px`;
    port.style.height = `${height + 2}px`; // up to the style sheet's limit; a small set leaves no void
    const [first, last] = span();
    for (const [place, node] of tiles) {
      if (place >= first && place < last) continue;
      node.remove();
      tiles.delete(place);
    }
    for (let place = first; place < last; place += 1) {
      const node = tiles.get(place) ?? makeTile(place);
      const left = TILE.gap / 2 + (place % columns) * (TILE.width + space) + space / 2;
      node.style.transform = `translate(${left}px, ${Math.floor(place / columns) * pitch() + TILE.gap}px)`;
      fill(node, place);
    }
    if (head.found) port.setAttribute("aria-activedescendant", `${client}-${at}`);
    else port.removeAttribute("aria-activedescendant");
    askRows(first, last);
    askThumbs();
  };
  let queued = false;
  const drawSoon = () => {
    if (queued) return;
    queued = true;
    requestAnimationFrame(() => {
      queued = false;
      draw();
    });
  };
  const toggle = (place) => {
    const id = row(place)?.id;
    if (id === undefined) return;
    selected.has(id) ? selected.delete(id) : selected.add(id);
    on.selection(selected.size);
  };
  const choose = (from, to) => {
    for (let place = Math.min(from, to); place <= Math.max(from, to); place += 1) {
      if (row(place)) selected.add(row(place).id);
    }
    on.selection(selected.size);
  };
  const reveal = () => {
    const top = Math.floor(at / columns) * pitch();
    if (top < port.scrollTop) port.scrollTop = top;
    if (top + pitch() > port.scrollTop + port.clientHeight) port.scrollTop = top + pitch() + TILE.gap - port.clientHeight;
  };
  const clear = () => {
    selected.clear();
    on.selection(0);
  };
  port.onkeydown = (event) => {
    const screen = Math.max(1, Math.floor(port.clientHeight / pitch())) * columns;
    const moves = {
      ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, PageUp: -screen, PageDown: screen,
      Home: -head.found, End: head.found,
    };
    if (event.key in moves) {
      at = Math.min(head.found - 1, Math.max(0, at + moves[event.key]));
      if (event.shiftKey) choose(anchor, at);
      else anchor = at;
      reveal();
    } else if (event.key === "Enter" && head.found) on.open(at);
    else if (event.key === " ") toggle(at);
    else if (event.key === "Escape" && selected.size) clear();
    else return;
    event.preventDefault();
    draw();
  };
  const received = (message, buffers) => {
    if (message.op === "rows" && message.version === head.version) {
      message.rows.forEach((row, index) => rows.set(message.from + index, row));
      fresh.add(message.from / PAGE);
      lists.set(message.from / PAGE, head.list);
      drawSoon();
    } else if (message.op === "thumbs" && message.epoch === head.epoch) {
      inFlight = 0;
      message.asked.forEach((id) => urls.set(id, ""));
      message.ids.forEach((id, index) => urls.set(id, blobAddress(buffers[index], message.mimes[index])));
      drop();
      drawSoon();
    }
  };
  /** Let go of the pictures that were longest out of sight. */
  const drop = () => {
    const shown = new Set([...extra, ...[...tiles.keys()].map((place) => rows.get(place)?.id)]);
    for (const [id, url] of urls) {
      if (urls.size <= KEPT_URLS) break;
      if (shown.has(id)) continue;
      URL.revokeObjectURL(url);
      urls.delete(id);
    }
  };
  const forgetUrls = () => {
    for (const url of urls.values()) if (url) URL.revokeObjectURL(url);
    urls.clear();
  };
  port.addEventListener("scroll", drawSoon, { passive: true });
  model.on("msg:custom", received);
  const watcher = new ResizeObserver(drawSoon);
  watcher.observe(port);
  return {
    node: port,
    /** What is at a place; undefined until that is known of the list as it is now. */
    row,
    url: (id) => urls.get(id) || "",
    selected: () => [...selected],
    clear,
    want(ids) {
      extra = ids;
    },
    follow(next) {
      const [version, epoch] = [head.version, head.epoch];
      head = next;
      if (next.version !== version) {
        asked.clear();
        fresh.clear();
        inFlight = 0;
        for (const place of rows.keys()) if (place >= next.found) rows.delete(place);
      }
      if (next.epoch !== epoch) {
        forgetUrls();
        rows.clear();
        clear();
      }
      at = Math.max(0, Math.min(at, head.found - 1));
      drawSoon();
    },
    /** Make `place` the one that keys act on, and ask for what is known of it. */
    go(place) {
      at = place;
      reveal();
      askRows(place, place + 1);
      drawSoon();
    },
    update(next) {
      for (const [place, old] of rows) if (old.id === next.id) rows.set(place, next);
      drawSoon();
    },
    close() {
      watcher.disconnect();
      clearTimeout(retry);
      model.off("msg:custom", received);
      forgetUrls();
    },
  };
}

/** A comm buffer is a DataView or a typed array, by platform; it may be a window on a larger one. */
function blobAddress(bytes, mime) {
  const view = new Uint8Array(bytes.buffer ?? bytes, bytes.byteOffset ?? 0, bytes.byteLength);
  return URL.createObjectURL(new Blob([view], { type: mime }));
}
