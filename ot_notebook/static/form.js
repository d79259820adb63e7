// The settings form. Python describes it (groups, values, problems); this file draws it and reports edits.

const TYPING_MS = 180; // pause after which what was typed is checked
const SETTLE_MS = 500; // after this, a field that was left shows what the kernel made of it
const APPLIES = { now: "Takes effect at once", epoch: "Takes effect with the next epoch", restart: "Takes effect with the next start" };
const BADGES = { now: "live", epoch: "epoch" }; // the rest waits for a start, which goes without saying

/** A window for what needs more room: a path, code, a list of differences. */
function createWindow(root) {
  const dialog = element("dialog", "ot ot-viewer ot-window");
  const title = element("h3");
  const body = element("div", "ot-window-body");
  const head = element("div", "ot-viewer-head");
  head.append(title, button("ot-button", "Close", () => dialog.close()));
  dialog.append(head, body);
  dialog.onclick = (event) => {
    if (event.target === dialog) dialog.close(); // the backdrop
  };
  root.append(dialog);
  return {
    open(name, ...nodes) {
      title.textContent = name;
      dialog.setAttribute("aria-label", name);
      body.replaceChildren(...nodes);
      if (!dialog.open) dialog.showModal();
      body.querySelector("input, select, textarea, button")?.focus();
    },
    close: () => dialog.close(),
  };
}

/** A line of text to give, and a button that uses it. */
function askPath(label, value, word, done) {
  const node = element("div", "ot-ask");
  const input = element("input", "ot-input");
  input.type = "text";
  input.value = value;
  input.spellcheck = false;
  const name = element("label", "", label);
  name.append(input);
  const go = () => {
    if (input.value.trim()) done(input.value.trim());
  };
  input.onkeydown = (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault(); // the rest of the key press would push the button that gets the focus back
    go();
  };
  node.append(name, button("ot-button ot-primary", word, go));
  return node;
}

function table(rows, onreset) {
  const node = element("table", "ot-table");
  const top = element("tr");
  for (const name of ["Setting", "There", "Here", ""]) top.append(element("th", "", name));
  node.append(top);
  for (const { path, there, here } of rows) {
    const line = element("tr");
    const name = element("td");
    name.append(element("code", "", path));
    const last = element("td");
    if (onreset) last.append(iconButton("reset", `Reset ${path}`, () => onreset(path, line)));
    line.append(name, element("td", "", there), element("td", "", here), last);
    node.append(line);
  }
  return node;
}

function download(name, text) {
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** What a person chose to see; of no interest to the kernel. */
function createFilter(redraw) {
  const state = { query: [], all: false, changed: false };
  const search = element("input", "ot-input ot-search");
  search.type = "search";
  search.placeholder = "Search all settings";
  search.setAttribute("aria-label", "Search all settings");
  search.oninput = () => {
    state.query = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    redraw();
  };
  const levels = element("div", "ot-segments");
  levels.setAttribute("role", "group");
  levels.setAttribute("aria-label", "Settings to show");
  const segments = [
    ["Basic", () => Object.assign(state, { all: false, changed: false }), () => !state.all && !state.changed],
    ["All", () => Object.assign(state, { all: true, changed: false }), () => state.all],
    ["Changed", () => Object.assign(state, { all: false, changed: true }), () => state.changed],
  ].map(([name, choose, chosen]) => {
    const node = button("", name, () => {
      choose();
      redraw();
    });
    levels.append(node);
    return { node, name, chosen };
  });
  const bar = element("div", "ot-filter");
  bar.append(search, levels);
  return {
    bar,
    state,
    clear() {
      search.value = "";
      state.query = [];
    },
    draw(changes) {
      for (const { node, name, chosen } of segments) {
        node.setAttribute("aria-pressed", String(chosen()));
        write(node, name === "Changed" && changes ? `Changed ${changes}` : name);
      }
    },
    fits(row, changed, wrong) {
      if (state.query.length) {
        row.text ??= `${row.label} ${row.path} ${row.help}`.toLowerCase();
        return state.query.every((word) => row.text.includes(word));
      }
      if (state.changed) return changed;
      return state.all || row.level === "basic" || changed || wrong;
    },
  };
}

/** The place at the bottom that explains the setting pointed at: always there, so nothing jumps. */
function createInspector() {
  const node = element("div", "ot-inspector");
  const head = element("div", "ot-inspector-head");
  const help = element("div", "ot-inspector-help");
  help.textContent = "Point at a setting to read what it does.";
  node.append(head, help);
  return {
    node,
    describe(row, path) {
      const facts = [row.rule && `${row.rule}${row.unit ? ` ${row.unit}` : ""}`, row.default && `default ${row.default}`, APPLIES[row.applies]];
      head.replaceChildren(element("b", "", row.label), element("code", "", path), element("span", "", facts.filter(Boolean).join(" · ")));
      help.textContent = row.help;
      help.title = row.help;
    },
  };
}

/** Preset, undo and redo, save. */
function createHead(model, send, openSave) {
  const node = element("div", "ot-form-head");
  const preset = element("select", "ot-input ot-preset");
  preset.setAttribute("aria-label", "Preset");
  const own = Object.assign(element("option"), { value: "" });
  preset.append(own);
  for (const [family, names] of model.get("presets")) {
    const group = element("optgroup");
    group.label = family;
    for (const name of names) group.append(Object.assign(element("option", "", name), { value: name }));
    preset.append(group);
  }
  preset.onchange = () => {
    if (preset.value) send({ op: "load", source: preset.value });
  };
  const undo = iconButton("undo", "Undo", () => send({ op: "undo" }));
  const redo = iconButton("redo", "Redo", () => send({ op: "redo" }));
  const save = iconButton("save", "Save", () => (model.get("head").file ? send({ op: "save", path: "" }) : openSave()));
  const tools = element("div", "ot-tools");
  tools.append(undo, redo, save);
  node.append(element("h3", "", "Settings"), preset, tools);
  return {
    node,
    draw({ preset: name, file, undo: back, redo: forward }) {
      const known = [...preset.options].some((option) => option !== own && option.value === name);
      own.textContent = known ? "Choose a preset" : name || "Settings from code";
      own.hidden = known;
      preset.value = known ? name : "";
      preset.title = file || name;
      undo.disabled = !back;
      redo.disabled = !forward;
      save.title = file ? `Save to ${file}` : "Save as";
    },
  };
}

/** What the kernel has to say of a request: saved, or why not. */
function createNotice() {
  const node = element("div", "ot-alert");
  node.setAttribute("role", "status");
  const text = element("span");
  let dismissed = 0;
  let number = 0;
  node.append(text, iconButton("remove", "Dismiss", () => {
    dismissed = number;
    node.hidden = true;
  }));
  return {
    node,
    draw(said) {
      number = said?.number ?? 0;
      node.hidden = !said || number === dismissed;
      if (!said) return;
      node.className = `ot-alert ot-notice ot-tone-${said.tone}`;
      write(text, said.text);
    },
  };
}

/** How many settings are wrong; a click goes to the first. It stands where nothing moves when it comes. */
function createWrong(goTo) {
  const wrong = element("div", "ot-wrong");
  wrong.setAttribute("role", "status");
  return {
    node: wrong,
    draw(problems) {
      const errors = problems.filter(({ severity }) => severity === "error");
      const shown = errors.length ? errors : problems;
      wrong.hidden = !shown.length;
      if (!shown.length) return;
      wrong.className = `ot-wrong ot-tone-${errors.length ? "bad" : "hold"}`;
      const what = errors.length ? "problem" : "remark";
      const count = `${shown.length} ${what}${shown.length > 1 ? "s" : ""}`;
      const [first] = shown;
      const words = first.path || first.text;
      if (wrong.dataset.said !== count + words) {
        wrong.dataset.said = count + words;
        const go = button("ot-link", words, () => goTo(first.path));
        wrong.replaceChildren(element("b", "", count), first.path ? go : element("span", "", words));
      }
    },
  };
}

/** Load, import, export and the like. */
function createActions(model, send, window) {
  const node = element("div", "ot-actions");
  const add = (label, hint, action) => {
    const made = button("ot-link", label, action);
    made.title = hint;
    node.append(made);
  };
  const file = element("input");
  file.type = "file";
  file.accept = ".json,application/json";
  file.hidden = true;
  file.onchange = async () => {
    const [chosen] = file.files;
    if (chosen) send({ op: "import", name: chosen.name, text: await chosen.text() });
    file.value = "";
  };
  const path = () => model.get("head").file;
  const openSave = () =>
    window.open("Save as", askPath("File on the kernel's machine", path() || "config.json", "Save", (value) => {
      send({ op: "save", path: value });
      window.close();
    }));
  add("Load", "Load a config or preset from the kernel's machine", () =>
    window.open("Load", askPath("File on the kernel's machine, or a preset", path(), "Load", (value) => {
      send({ op: "load", source: value });
      window.close();
    })));
  add("Import", "Import a config from your computer", () => file.click());
  add("Save as", "Save under another name", openSave);
  add("Export", "Download as OneTrainer's JSON", () => send({ op: "export" }));
  add("Python", "Show the code that makes these settings", () => send({ op: "python" }));
  add("Compare", "Show what differs from a preset", () => send({ op: "diff", against: null }));
  node.append(file);
  return { node, openSave };
}

/** Windows that show an answer of the kernel. */
function createAnswers(model, send, window) {
  let against = null;
  const showCode = (text) => {
    const area = element("textarea", "ot-input ot-code");
    area.readOnly = true;
    area.value = text;
    area.rows = Math.min(20, text.split("\n").length);
    area.setAttribute("aria-label", "Python code");
    const copy = button("ot-button ot-primary", "Copy", async () => {
      area.select();
      try {
        await navigator.clipboard.writeText(text);
        copy.textContent = "Copied";
      } catch {
        copy.textContent = "Press Ctrl+C"; // an embedded page may not touch the clipboard
      }
    });
    window.open("As Python", area, copy);
  };
  const showDifferences = (rows) => {
    const select = element("select", "ot-input");
    const put = (parent, value, label) => parent.append(Object.assign(element("option", "", label), { value }));
    put(select, "*", "where these settings started");
    put(select, "", "the defaults");
    for (const [family, names] of model.get("presets")) {
      const group = element("optgroup");
      group.label = family;
      names.forEach((name) => put(group, name, name));
      select.append(group);
    }
    select.value = against ?? "*";
    select.onchange = () => {
      against = select.value === "*" ? null : select.value;
      send({ op: "diff", against });
    };
    const label = element("label", "ot-against", "Compared with ");
    label.append(select);
    const undo = (path, line) => {
      send({ op: "reset", path });
      line.remove();
    };
    const nothing = element("p", "ot-caption", "No setting differs.");
    window.open("Differences", label, rows.length ? table(rows, against === null && undo) : nothing);
  };
  return (message) => {
    if (message.op === "export") download(message.name, message.text);
    if (message.op === "python") showCode(message.text);
    if (message.op === "diff") showDifferences(message.rows);
  };
}

/** Edits on their way to the kernel: typing is gathered, the rest goes at once. */
function createEdits(model, redraw) {
  const pending = new Map(); // path -> value
  let timer = 0;
  const flush = () => {
    clearTimeout(timer);
    for (const [path, value] of pending) model.send({ op: "edit", path, value });
    pending.clear();
  };
  return {
    flush,
    waits: (path) => pending.has(path),
    edit(path, value, wait) {
      pending.set(path, value);
      clearTimeout(timer);
      if (wait) timer = setTimeout(flush, wait);
      else flush();
    },
    leave() {
      flush();
      setTimeout(redraw, SETTLE_MS);
    },
  };
}

/** Groups of rows; a row is made when it is first shown. */
function createBody(model, form, filter) {
  const node = element("div", "ot-form-body");
  const none = element("p", "ot-caption ot-nothing");
  const groups = model.get("groups").map(({ name, rows }) => {
    const section = element("details", "ot-group");
    section.open = true;
    const summary = element("summary");
    const chip = element("span", "ot-chip");
    summary.append(element("h4", "", name), chip);
    const list = element("div", "ot-fields");
    section.append(summary, list);
    node.append(section);
    return { section, chip, list, rows, made: new Map() };
  });
  node.append(none);
  const draw = () => {
    const values = model.get("values");
    const changed = model.get("changed");
    const visible = new Set(model.get("visible"));
    const problems = new Map(model.get("problems").map((one) => [one.path, one]));
    const inside = (path) => [...problems.keys()].some((key) => key.startsWith(`${path}.`));
    let found = 0;
    for (const { section, chip, list, rows, made } of groups) {
      let changes = 0;
      const shown = rows.filter((row) => {
        const differs = row.path in changed;
        const wrong = problems.has(row.path) || (row.kind === "list" && inside(row.path));
        if (!(visible.has(row.path) || wrong) || !filter.fits(row, differs, wrong)) return false;
        changes += differs;
        return true;
      });
      section.hidden = !shown.length;
      found += shown.length;
      if (filter.state.query.length && shown.length) section.open = true;
      write(chip, changes ? `${changes} changed` : "");
      chip.hidden = !changes;
      arrange(list, shown.map((row) => {
        if (!made.has(row.path)) made.set(row.path, (row.kind === "list" ? createList : createRow)(row, row.path, form));
        const one = made.get(row.path);
        one.fill(values[row.path], changed[row.path], problems.get(row.path), problems);
        one.filter?.(filter.state.all, visible, problems);
        return one.node;
      }));
    }
    none.hidden = found > 0;
    write(none, filter.state.query.length ? "No setting that counts here matches." : "Nothing is changed.");
  };
  return { node, draw };
}

function renderForm(model, el, client) {
  const root = element("div", "ot ot-form");
  const send = (message) => {
    edits.flush();
    model.send(message);
  };
  const edits = createEdits(model, () => draw());
  const filter = createFilter(() => draw());
  const inspector = createInspector();
  const window = createWindow(root);
  const actions = createActions(model, send, window);
  const head = createHead(model, send, actions.openSave);
  const form = {
    client,
    send,
    edit: edits.edit,
    leave: edits.leave,
    waits: edits.waits,
    describe: inspector.describe,
    offered: (path) => model.get("head").offered[path],
    focused: () => root.ownerDocument.activeElement,
  };
  const goTo = (path) => {
    filter.clear();
    draw();
    const control = root.ownerDocument.getElementById(`${client}-${path}`);
    control?.closest("details")?.setAttribute("open", "");
    control?.scrollIntoView({ block: "center" });
    control?.focus({ preventScroll: true });
  };
  const notice = createNotice();
  const wrong = createWrong(goTo);
  actions.node.append(wrong.node);
  const body = createBody(model, form, filter);
  const top = root.firstChild;
  for (const part of [head, { node: filter.bar }, notice, body, inspector, actions]) root.insertBefore(part.node, top);
  el.append(root);

  const draw = () => {
    const said = model.get("head");
    head.draw(said);
    notice.draw(said.notice);
    wrong.draw(model.get("problems"));
    filter.draw(Object.keys(model.get("changed")).length);
    body.draw();
  };
  root.onkeydown = (event) => {
    const typing = event.target.matches("input:not([type=checkbox]), textarea");
    if (typing || !(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "z") return;
    event.preventDefault();
    send({ op: event.shiftKey ? "redo" : "undo" });
  };
  let queued = false; // several traits change together: draw them once
  const drawSoon = () => {
    if (queued) return;
    queued = true;
    queueMicrotask(() => {
      queued = false;
      draw();
    });
  };
  const watched = ["values", "visible", "changed", "problems", "head"].map((name) => `change:${name}`);
  watched.forEach((event) => model.on(event, drawSoon));
  const answer = createAnswers(model, send, window);
  model.on("msg:custom", answer);
  draw();
  return () => {
    edits.flush();
    watched.forEach((event) => model.off(event, drawSoon));
    model.off("msg:custom", answer);
  };
}

export default () => {
  let line;
  let views = 0;
  return {
    initialize({ model }) {
      line = connect(model, 1000);
      return () => line.close();
    },
    render({ model, el }) {
      views += 1;
      const undraw = renderForm(model, el, `ot-${Math.random().toString(36).slice(2)}-${views}`);
      const hidden = line.shown(el);
      return () => {
        undraw();
        hidden();
      };
    },
  };
};
