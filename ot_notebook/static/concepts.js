// The concept editor. Python holds the set and does every change; this file shows it and asks.

const SEARCH_MS = 180;
const EVERYTHING = { concept: null, text: "", tag: "", problem: "", captioned: null, masked: null, smallest: 0, largest: 0, bucket: "", cache: "", twins: false };
const MARKS = {
  undo: "M5.2 1 1.5 4.5 5.2 8V5.5h3.3a2.5 2.5 0 0 1 0 5H4V12h4.5a4 4 0 0 0 0-8H5.2z",
  redo: "M8.8 1v3H5.5a4 4 0 0 0 0 8H10v-1.5H5.5a2.5 2.5 0 0 1 0-5h3.3V8l3.7-3.5z",
  rescan: "M7 1.5a5.5 5.5 0 1 1-5.3 4h1.6A4 4 0 1 0 7 3v2.2L3.5 2.6 7 0z",
  remove: "M3.7 2.6 7 5.9l3.3-3.3 1.1 1.1L8.1 7l3.3 3.3-1.1 1.1L7 8.1l-3.3 3.3-1.1-1.1L5.9 7 2.6 3.7z",
  up: "M7 3l5 6.5H2z",
  down: "M7 11 2 4.5h10z",
  copy: "M1.5 1.5h8V4H8V3H3v5h1v1.5H1.5zM5 5h7.5v7.5H5zm1.5 1.5V11H11V6.5z",
};

function mark(shape, label, onclick, className = "") {
  const node = button(`ot-icon ${className}`, undefined, onclick);
  node.append(icon(MARKS[shape]));
  node.title = label;
  node.setAttribute("aria-label", label);
  return node;
}

function select(label, className, options, onchange) {
  const node = element("select", `ot-input ${className}`);
  node.setAttribute("aria-label", label);
  for (const [value, words] of options) node.append(Object.assign(element("option", "", words), { value }));
  node.onchange = () => onchange(node.value);
  return node;
}

/** One concept of the list; the chosen one shows its settings. */
function createCard(index, on) {
  const node = element("li", "ot-concept");
  const head = button("ot-concept-head", undefined, () => on.choose(index));
  const cover = new Image();
  cover.alt = "";
  const words = element("span", "ot-concept-words");
  words.append(element("b"), element("small"), element("small", "ot-bad-words"));
  head.append(cover, words);
  const enabled = Object.assign(element("input", "ot-switch"), { type: "checkbox" });
  enabled.onchange = () => on.change(index, { enabled: enabled.checked });
  const top = element("div", "ot-concept-top");
  top.append(head, enabled);
  const more = element("div", "ot-concept-more");
  const field = (label, control) => {
    const box = element("label", "ot-concept-field");
    box.append(element("span", "", label), control);
    more.append(box);
    return control;
  };
  const text = (label, key) => {
    const input = field(label, Object.assign(element("input", "ot-input"), { type: "text", spellcheck: false }));
    input.onchange = () => on.change(index, { [key]: input.value });
    return input;
  };
  const name = text("Name", "name");
  const path = text("Folder", "path");
  const type = field("Type", select("Type", "", on.choices.type, (value) => on.change(index, { type: value })));
  const balance = element("span", "ot-balance");
  const amount = Object.assign(element("input", "ot-input"), { type: "text", inputMode: "decimal" });
  amount.setAttribute("aria-label", "Balance");
  amount.onchange = () => on.change(index, { balancing: Number(amount.value) });
  const strategy = select("Balance by", "", on.choices.balancing_strategy, (value) =>
    on.change(index, { balancing_strategy: value }),
  );
  balance.append(amount, strategy);
  const row = element("div", "ot-concept-field");
  row.append(element("span", "", "Balance"), balance);
  more.append(row);
  const deep = Object.assign(element("input"), { type: "checkbox" });
  deep.onchange = () => on.change(index, { include_subdirectories: deep.checked });
  const check = element("label", "ot-check");
  check.append(deep, "Read folders below it too");
  const tools = element("div", "ot-concept-tools");
  const up = mark("up", "Move up", () => on.act({ action: "move", index, to: index - 1 }));
  const down = mark("down", "Move down", () => on.act({ action: "move", index, to: index + 1 }));
  tools.append(
    check,
    up,
    down,
    mark("copy", "Duplicate", () => on.act({ action: "duplicate", index })),
    mark("remove", "Take off the list; the files stay", () => on.act({ action: "remove", index })),
  );
  more.append(tools);
  node.append(top, more);
  node.draggable = true;
  node.ondragstart = (event) => event.dataTransfer.setData("text/ot-concept", String(index));
  node.ondragover = (event) => {
    if (event.dataTransfer.types.includes("text/ot-concept")) event.preventDefault();
  };
  node.ondrop = (event) => {
    event.preventDefault();
    const from = Number(event.dataTransfer.getData("text/ot-concept"));
    if (from !== index) on.act({ action: "move", index: from, to: index });
  };
  const set = (input, value) => {
    if (document.activeElement !== input) input.value = value;
  };
  return {
    node,
    fill(concept, chosen, count, url) {
      node.classList.toggle("ot-chosen", chosen);
      node.classList.toggle("ot-off", !concept.enabled);
      more.hidden = !chosen;
      head.setAttribute("aria-pressed", String(chosen));
      write(words.children[0], concept.name || "Unnamed");
      const kind = concept.type === "STANDARD" ? "" : ` · ${concept.type.replace("_", " ").toLowerCase()}`;
      const times = concept.balancing === 1 && concept.balancing_strategy === "REPEATS" ? "" : ` · × ${concept.balancing}`;
      write(words.children[1], `${concept.images.toLocaleString()} images${kind}${times}`);
      write(words.children[2], concept.wrong ? `${concept.wrong.toLocaleString()} to look at` : "");
      if (url && cover.src !== url) cover.src = url;
      cover.hidden = !url;
      enabled.checked = concept.enabled;
      enabled.setAttribute("aria-label", `Train on ${concept.name}`);
      set(name, concept.name);
      set(path, concept.path);
      set(amount, String(concept.balancing));
      type.value = concept.type;
      strategy.value = concept.balancing_strategy;
      deep.checked = concept.include_subdirectories;
      up.disabled = index === 0;
      down.disabled = index === count - 1;
    },
  };
}

/** The list of concepts, and how to add one. */
function createList(model, covers) {
  const node = element("div", "ot-concepts");
  const list = element("ul", "ot-concept-list");
  const everything = button("ot-button ot-everything", "All images", () => on.choose(null));
  const cards = [];
  const on = {
    choices: model.get("choices"),
    act: (given) => model.send({ op: "concept", ...given }),
    change: (index, settings) => model.send({ op: "concept", action: "change", index, settings }),
    choose: (index) => model.send({ op: "filter", filter: { ...model.get("head").filter, concept: index } }),
  };
  const add = element("form", "ot-add");
  const path = Object.assign(element("input", "ot-input"), { type: "text", spellcheck: false, placeholder: "Folder of images" });
  path.setAttribute("aria-label", "Folder to add");
  const go = button("ot-button", "Add", () => {
    on.act({ action: "add", path: path.value });
    path.value = "";
  });
  add.onsubmit = (event) => {
    event.preventDefault();
    go.click();
  };
  const browse = button("ot-button", "Browse", () => model.send({ op: "browse" }));
  add.append(path, go, browse);
  node.append(everything, list, add);
  return {
    node,
    draw() {
      const concepts = model.get("concepts");
      const chosen = model.get("head").filter?.concept ?? null;
      while (cards.length < concepts.length) cards.push(createCard(cards.length, on));
      arrange(list, cards.slice(0, concepts.length).map((card) => card.node));
      concepts.forEach((one, index) => cards[index].fill(one, chosen === index, concepts.length, covers(one.cover)));
      everything.setAttribute("aria-pressed", String(chosen === null));
      everything.hidden = concepts.length < 2 && chosen === null;
    },
  };
}

/** Search, filters, frequent tags: which images are shown. */
function createFilters(model) {
  const node = element("div", "ot-filters");
  const send = (change) => model.send({ op: "filter", filter: { ...model.get("head").filter, ...change } });
  let timer = 0;
  const search = Object.assign(element("input", "ot-input ot-search"), { type: "search", placeholder: "Search; -word leaves out" });
  search.setAttribute("aria-label", "Search captions and names");
  search.oninput = () => {
    clearTimeout(timer);
    timer = setTimeout(() => send({ text: search.value }), SEARCH_MS);
  };
  const show = element("select", "ot-input ot-show");
  show.setAttribute("aria-label", "Show");
  show.onchange = () => send({ problem: "", captioned: null, masked: null, twins: false, ...JSON.parse(show.value) });
  const size = select(
    "Size",
    "ot-size",
    [["{}", "Any size"], ...[512, 768, 1024].map((px) => [`{"smallest":${px}}`, `At least ${px} px`]), ...[512, 256].map((px) => [`{"largest":${px}}`, `At most ${px} px`])],
    (value) => send({ smallest: 0, largest: 0, ...JSON.parse(value) }),
  );
  const cache = element("select", "ot-input ot-show");
  cache.setAttribute("aria-label", "Cache");
  cache.onchange = () => send({ cache: cache.value });
  const row = element("div", "ot-filter");
  row.append(search, show, cache, size);
  const tags = element("div", "ot-chips ot-top-tags");
  const only = button("ot-link ot-only", "", () => send({ bucket: "" }));
  node.append(row, only, tags);
  return {
    node,
    draw() {
      const { filter } = model.get("head");
      const stats = model.get("stats");
      if (document.activeElement !== search) search.value = filter.text;
      const options = [
        ["{}", "Show all"],
        ['{"captioned":false}', "Without a caption"],
        ['{"masked":true}', "With a mask"],
        ['{"masked":false}', "Without a mask"],
        ...(stats.twins ? [['{"twins":true}', `That look alike (${stats.twins.toLocaleString()})`]] : []),
        ...(stats.problems?.length ? [['{"problem":"any"}', "With any problem"]] : []),
        ...(stats.problems ?? []).map(([kind, count]) => [JSON.stringify({ problem: kind }), `${kind} (${count.toLocaleString()})`]),
      ];
      const now = filter.problem
        ? JSON.stringify({ problem: filter.problem })
        : filter.twins ? '{"twins":true}'
        : filter.captioned === false ? '{"captioned":false}' : filter.masked !== null ? `{"masked":${filter.masked}}` : "{}";
      if (!options.some(([value]) => value === now)) options.push([now, filter.problem || "That look alike"]);
      show.replaceChildren(...options.map(([value, label]) => Object.assign(element("option", "", label), { value })));
      show.value = now;
      size.value = filter.smallest ? `{"smallest":${filter.smallest}}` : filter.largest ? `{"largest":${filter.largest}}` : "{}";
      const states = [["", "Any cache state"], ["fresh", "Cached"], ["stale", "Changed since cached"], ["new", "Not cached yet"], ["error", "Cannot be read"]];
      const counts = stats.cache ?? {};
      cache.hidden = !Object.keys(counts).length && !filter.cache;
      cache.replaceChildren(
        ...states.map(([value, label]) => {
          const words = value ? `${label} (${(counts[value] ?? 0).toLocaleString()})` : label;
          return Object.assign(element("option", "", words), { value });
        }),
      );
      cache.value = filter.cache;
      const bucket = filter.bucket;
      only.hidden = !bucket;
      write(only, `Only ${bucket.replace("x", " × ")} · show all sizes`);
      const frequent = (stats.tags ?? []).slice(0, 16);
      if (filter.tag && !frequent.some(([tag]) => tag === filter.tag)) frequent.unshift([filter.tag, ""]);
      tags.replaceChildren(
        ...frequent.map(([tag, count]) => {
          const chip = button("ot-tag", tag, () => send({ tag: filter.tag === tag ? "" : tag }));
          chip.append(element("small", "", count.toLocaleString()));
          chip.setAttribute("aria-pressed", String(filter.tag === tag));
          return chip;
        }),
      );
    },
  };
}

/** Title, figures, undo, files of concepts. */
function createHead(model) {
  const node = element("div", "ot-form-head");
  const figures = element("span", "ot-caption ot-figures");
  const undo = mark("undo", "Undo", () => model.send({ op: "undo" }));
  const redo = mark("redo", "Redo", () => model.send({ op: "redo" }));
  const rescan = mark("rescan", "Read the folders again", () => model.send({ op: "rescan" }));
  const file = Object.assign(element("input"), { type: "file", accept: ".json", hidden: true });
  file.onchange = async () => {
    if (file.files[0]) model.send({ op: "concept", action: "import", name: file.files[0].name, text: await file.files[0].text() });
    file.value = "";
  };
  const tools = element("div", "ot-tools");
  tools.append(
    undo, redo, rescan,
    button("ot-link", "Import", () => file.click()),
    button("ot-link", "Export", () => model.send({ op: "export" })),
    file,
  );
  const received = (message) => {
    if (message.op !== "export") return;
    const link = element("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(message.value, null, 4)], { type: "application/json" }));
    link.download = message.name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  model.on("msg:custom", received);
  const stop = button("ot-button ot-small", "Stop", () => model.send({ op: "stop" }));
  node.append(element("h3", "", "Training set"), figures, stop, tools);
  return {
    node,
    draw() {
      const head = model.get("head");
      const stats = model.get("stats");
      const say = (mark, word, label) => {
        mark.disabled = !label;
        mark.title = label ? `${word}: ${label}` : `Nothing to ${word.toLowerCase()}`;
        mark.setAttribute("aria-label", mark.title);
      };
      say(undo, "Undo", head.undo);
      say(redo, "Redo", head.redo);
      const parts = [];
      stop.hidden = !head.task;
      if (head.task) parts.push(`${head.task.what}: ${head.task.done.toLocaleString()} of ${head.task.total.toLocaleString()}`);
      else if (head.scanning) parts.push("Reading the folders");
      else if (stats.images) {
        parts.push(`${stats.images.toLocaleString()} images`, `${stats.captioned.toLocaleString()} with a caption`);
        if (stats.masked) parts.push(`${stats.masked.toLocaleString()} with a mask`);
        parts.push(stats.smallest === stats.largest ? `${stats.largest} px` : `${stats.smallest} to ${stats.largest} px`);
      }
      write(figures, parts.join(" · "));
    },
    close: () => model.off("msg:custom", received),
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
      const root = element("div", "ot ot-set");
      root.dataset.lmSuppressShortcuts = "true";
      const notice = element("div", "ot-alert ot-notice");
      notice.setAttribute("role", "status");
      const noticeText = element("span");
      let dismissed = 0;
      notice.append(
        noticeText,
        mark("remove", "Dismiss", () => {
          dismissed = model.get("head").notice?.number ?? 0;
          notice.hidden = true;
        }),
      );
      const status = element("span", "ot-caption");
      const selection = button("ot-link", "", () => grid.clear());
      selection.hidden = true;
      const grid = createGrid(model, {
        open: (at) => view.open(at),
        selection: (size) => {
          selection.hidden = !size;
          write(selection, `${size.toLocaleString()} selected · clear`);
        },
      });
      const facts = () => ({ found: model.get("head").found, tags: model.get("stats").tags ?? [], selected: grid.selected() });
      const view = createItemView(root, model, grid, facts);
      const bulk = createBulk(root, model, facts);
      const edit = button("ot-button", "Edit captions", () => bulk.open());
      const annotate = createAnnotate(root, model, facts);
      const ask = button("ot-button", "Ask a model", () => annotate.open());
      ask.title = "Captions or masks by a model, in the background";
      const alike = button("ot-button", "Find duplicates", () => model.send({ op: "duplicates" }));
      alike.title = "Look for images that look the same";
      const buckets = createBuckets(model, (bucket) => {
        showImages();
        model.send({ op: "filter", filter: { ...model.get("head").filter, bucket } });
      });
      const report = createReport(model, (wanted) => {
        showImages();
        model.send({ op: "filter", filter: { ...EVERYTHING, ...wanted } });
      });
      const tabs = element("div", "ot-segments ot-set-tabs");
      tabs.setAttribute("role", "group");
      tabs.setAttribute("aria-label", "Show");
      for (const [key, label] of [["images", "Images"], ["buckets", "Sizes"], ["report", "Report"]]) {
        const one = button("", label, () => turn(key));
        one.dataset.tab = key;
        tabs.append(one);
      }
      let tab = "images";
      const turn = (key) => {
        tab = key;
        for (const one of tabs.children) one.setAttribute("aria-pressed", String(one.dataset.tab === key));
        buckets.show(key === "buckets");
        report.show(key === "report");
        drawEmpty();
      };
      /** From a link of another tab, which is hidden now and must not take the focus with it. */
      const showImages = () => {
        turn("images");
        tabs.firstElementChild.focus();
      };
      const head = createHead(model);
      const list = createList(model, (id) => (id === null ? "" : grid.url(id)));
      const filters = createFilters(model);
      const empty = element("div", "ot-empty ot-grid-empty");
      empty.append(element("span"), element("small"));
      const foot = element("div", "ot-grid-foot");
      foot.append(status, selection, alike, ask, edit);
      const main = element("div", "ot-set-main");
      main.append(tabs, filters.node, grid.node, buckets.node, report.node, empty, foot);
      const body = element("div", "ot-set-body");
      body.append(list.node, main);
      root.append(head.node, notice, body);
      el.append(root);

      const drawEmpty = () => {
        const { found, scanning } = model.get("head");
        const { missing = [] } = model.get("stats");
        const none = model.get("concepts").length === 0;
        const [text, hint] = none
          ? ["Add a folder of images to begin.", "Captions are the .txt files beside them."]
          : scanning ? ["Reading the folders", ""]
          : missing.length && !model.get("stats").images ? ["There is nothing to show.", missing.join("\n")]
          : ["No image fits.", "Change the search or the filter."];
        const images = tab === "images";
        empty.hidden = found > 0 || !(images || none);
        grid.node.hidden = found === 0 || !images;
        filters.node.hidden = none || !images;
        foot.hidden = none || !images;
        tabs.hidden = none;
        buckets.node.hidden = none || tab !== "buckets";
        report.node.hidden = none || tab !== "report";
        write(empty.children[0], text);
        write(empty.children[1], hint);
      };
      const draw = () => {
        const now = model.get("head");
        notice.hidden = !now.notice || now.notice.number <= dismissed;
        notice.className = `ot-alert ot-notice ot-tone-${now.notice?.tone ?? "good"}`;
        write(noticeText, now.notice?.text ?? "");
        head.draw();
        list.draw();
        filters.draw();
        drawEmpty();
        grid.want(model.get("concepts").map((one) => one.cover).filter((id) => id !== null));
        grid.follow(now);
        write(status, now.found === now.total ? "" : `${now.found.toLocaleString()} of ${now.total.toLocaleString()} images shown`);
        edit.disabled = !now.found;
        ask.disabled = !now.found || Boolean(now.task);
        alike.disabled = now.scanning || Boolean(now.task);
        [buckets, report, bulk, annotate].forEach((part) => part.follow());
      };
      let queued = false; // traits change together: draw them once
      const drawSoon = () => {
        if (queued) return;
        queued = true;
        queueMicrotask(() => {
          queued = false;
          draw();
        });
      };
      const covers = (message) => message.op === "thumbs" && list.draw();
      const watched = ["change:concepts", "change:head", "change:stats"];
      watched.forEach((event) => model.on(event, drawSoon));
      model.on("msg:custom", covers);
      turn(tab);
      draw();
      const hidden = line.shown(el);
      return () => {
        watched.forEach((event) => model.off(event, drawSoon));
        model.off("msg:custom", covers);
        [view, bulk, annotate, buckets, report, grid, head].forEach((part) => part.close());
        hidden();
      };
    },
  };
};
