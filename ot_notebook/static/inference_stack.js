// What lies on the model: LoRAs, words, and how it is loaded. Joined in front of inference.js.

/** Inputs that stay as they are until what they name is in the list: Python may refuse it. */
function createDraft(inputs, held) {
  let sent = null;
  let before = 0;
  return {
    sent() {
      sent = inputs.map(({ value }) => value);
      before = held().length;
    },
    settle() {
      if (!sent || held().length <= before) return;
      inputs.forEach((input, at) => {
        if (input.value === sent[at]) input.value = "";
      });
      sent = null;
    },
  };
}

/** A list of what is in use, each with a button to take it out, and a line to add one. */
function createStack(title, line, make, shownIn, draft) {
  const root = element("section", "ot-loras");
  const list = element("div");
  list.style.display = "contents";
  root.append(element("h4", "", title), list, line);
  let shown = "";
  return {
    root,
    draw() {
      const held = shownIn();
      const now = JSON.stringify(held);
      if (now === shown) return;
      shown = now;
      list.replaceChildren(...held.map(make));
      draft.settle();
    },
  };
}

function pathInput(hint, add) {
  const input = element("input", "ot-input ot-lora-path");
  input.placeholder = hint;
  input.setAttribute("aria-label", hint);
  input.onkeydown = (event) => {
    if (event.key === "Enter") add();
  };
  return input;
}

function stackLine(...nodes) {
  const line = element("div", "ot-lora");
  line.append(...nodes);
  return line;
}

/** The LoRA stack: a strength each, and a line to add one. */
function createLoras(model) {
  const held = () => model.get("view").loras;
  const current = () => held().map(({ path, strength }) => [path, strength]);
  const send = (loras) => model.send({ op: "loras", loras });
  const add = () => {
    if (!path.value.trim()) return;
    draft.sent();
    send([...current(), [path.value.trim(), 1.0]]);
  };
  const path = pathInput("Path of a LoRA file", add);
  const draft = createDraft([path], held);
  const make = ({ path, name, strength }, place) => {
    const label = element("span", "", name);
    label.title = path;
    const input = element("input", "ot-input ot-strength");
    input.type = "number";
    input.step = "0.05";
    input.value = strength;
    input.setAttribute("aria-label", `Strength of ${name}`);
    input.onchange = () => {
      const loras = current();
      const strength = numberIn(input);
      if (strength === null) input.value = loras[place][1]; // nothing was written: all stays
      else send(loras.with(place, [loras[place][0], strength]));
    };
    const remove = iconButton("remove", `Remove ${name}`, () => send(current().filter((_, at) => at !== place)));
    return stackLine(label, input, remove);
  };
  return createStack("LoRAs", stackLine(path, button("ot-button ot-small", "Add", add)), make, held, draft);
}

/** Embeddings: each a word that prompts may hold, and its file. */
function createWords(model) {
  const held = () => model.get("view").words;
  const current = () => held().map(({ word, path }) => [word, path]);
  const send = (words) => model.send({ op: "words", words });
  const add = () => {
    if (!path.value.trim()) return;
    draft.sent();
    send([...current(), [word.value.trim(), path.value.trim()]]);
  };
  const path = pathInput("Path of an embedding file", add);
  const word = pathInput("Its word", add);
  word.classList.add("ot-word");
  const draft = createDraft([path, word], held);
  const make = ({ word, path }, place) => {
    const label = element("span", "", word);
    label.title = path;
    const file = element("span", "ot-word-file", path.split("/").pop());
    file.title = path;
    const remove = iconButton("remove", `Remove ${word}`, () => send(current().filter((_, at) => at !== place)));
    return stackLine(label, file, remove);
  };
  const line = stackLine(path, word, button("ot-button ot-small", "Add", add));
  return createStack("Embeddings", line, make, held, draft);
}

/** Which model, and how it is loaded. */
function createLoader(model) {
  const source = element("input", "ot-input");
  source.placeholder = 'A folder, a file, a hub id, or "live"';
  source.setAttribute("aria-label", "Model");
  const { types, dtypes } = model.get("choices");
  const choose = (options, first) => {
    const select = element("select", "ot-input");
    const all = [["", first], ...options];
    select.append(...all.map(([value, text]) => Object.assign(element("option", "", text), { value })));
    return select;
  };
  const type = choose(types, "what it says");
  const dtype = choose(dtypes, "what suits the device");
  const offload = element("input");
  offload.type = "checkbox";
  const ask = () => {
    if (!usable(load)) return;
    model.send({
      op: "load", model: source.value, model_type: type.value, dtype: dtype.value, offload: offload.checked,
    });
  };
  const load = button("ot-button", "Load", ask);
  source.onkeydown = (event) => {
    if (event.key === "Enter") ask();
  };
  const { root, body, note } = fold("How it is loaded");
  root.classList.add("ot-draw-how");
  const check = element("label", "ot-draw-check");
  check.append(offload, "Keep layers in main memory: needs less of the device's, but is slower");
  const unload = button("ot-button ot-small", "Unload", () => usable(unload) && model.send({ op: "unload" }));
  const row = element("div", "ot-draw-numbers");
  row.append(labelled("Type", type), labelled("Precision", dtype));
  body.append(row, check, unload);
  return {
    source,
    load,
    root,
    draw() {
      const { state } = model.get("view");
      able(load, state !== "drawing" && state !== "loading");
      able(unload, state === "ready");
      const chosen = [types.find(([value]) => value === type.value)?.[1], dtype.value, offload.checked && "offload"];
      write(note, chosen.filter(Boolean).join(", "));
    },
  };
}
