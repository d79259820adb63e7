// Prompt, settings, LoRAs, and what they draw. Python holds everything; this file draws it and sends requests.

const NUMBERS = [
  ["width", "Width", "px"],
  ["height", "Height", "px"],
  ["steps", "Steps", ""],
  ["cfg_scale", "Guidance", ""],
  ["frames", "Frames", ""],
  ["clip_skip", "Clip skip", ""],
];

const PLACES = ["model", "draw", "start", "loras", "words", "grid"]; // where something can be refused

Object.assign(SHAPES, {
  dice: "M2 1h10a1 1 0 0 1 1 1v10a1 1 0 0 1-1 1H2a1 1 0 0 1-1-1V2a1 1 0 0 1 1-1zm2 2v2h2V3zm4 6v2h2V9zM6 6v2h2V6z",
  lock: "M4 6V4a3 3 0 0 1 6 0v2h1v7H3V6zm1.5 0h3V4a1.5 1.5 0 0 0-3 0z",
});

function labelled(text, control) {
  const label = element("label", "", text);
  label.append(control);
  return label;
}

/** The number that was written; what is none goes to Python as it is, to be refused by name. */
function numberIn(input) {
  const text = input.value.trim();
  if (!text) return null;
  const value = Number(text);
  return Number.isNaN(value) ? text : value;
}

/** The seed as it was written: a page's own numbers hold 53 bits, and a seed has 64. */
function seedIn(input) {
  return input.value.trim() || null;
}

/** Prompt and settings; `more` is for what is needed less. `read` gives them; `draw` shows what Python holds, but not over what is being typed. */
function createAsk(model, ask) {
  const root = element("div", "ot-draw-ask");
  const more = element("div", "ot-draw-more");
  const prompt = element("textarea", "ot-input ot-prompt-text");
  prompt.rows = 3;
  const negative = element("textarea", "ot-input ot-prompt-text");
  negative.rows = 1;
  const negativeLabel = labelled("Negative prompt", negative);
  const inputs = {};
  const labels = {};
  const numbers = element("div", "ot-draw-numbers");
  for (const [name, label, unit] of NUMBERS) {
    inputs[name] = element("input", "ot-input");
    inputs[name].inputMode = "decimal";
    labels[name] = labelled(unit ? `${label}, ${unit}` : label, inputs[name]);
  }
  inputs.strength = element("input", "ot-input");
  inputs.strength.inputMode = "decimal";
  labels.strength = labelled("Strength: how much of it goes, 0 to 1", inputs.strength);
  const scheduler = element("select", "ot-input");
  const schedulerLabel = labelled("Scheduler", scheduler);
  schedulerLabel.classList.add("ot-draw-wide");
  const seed = element("input", "ot-input");
  seed.inputMode = "numeric";
  seed.placeholder = "random";
  seed.setAttribute("aria-label", "Seed");
  const seedBox = element("div", "ot-seed");
  seedBox.append(
    seed,
    iconButton("dice", "Another seed each time", () => { seed.value = ""; changed(); }),
    iconButton("lock", "Keep the seed of the picture shown", () => {
      const id = model.get("picture").id;
      if (id !== undefined) model.send({ op: "reuse", id, seed: true });
    }),
  );
  const seedLabel = element("div", "ot-draw-wide ot-seed-field");
  const seedName = element("label", "", "Seed");
  seedLabel.append(seedName, seedBox);
  const { width, height, steps, cfg_scale: guidance, frames, clip_skip: skip } = labels;
  numbers.append(width, height, steps, guidance, schedulerLabel, seedLabel, frames, skip);
  root.append(labelled("Prompt", prompt), negativeLabel, numbers);

  const read = () => ({
    prompt: prompt.value,
    negative_prompt: negative.value,
    seed: seedIn(seed),
    ...Object.fromEntries(Object.entries(inputs).filter(([name]) => name in model.get("settings")).map(
      ([name, input]) => [name, numberIn(input)],
    )),
    ...(scheduler.options.length ? { scheduler: scheduler.value } : {}),
  });
  const changed = () => model.send({ op: "set", settings: read() });
  for (const part of [root, more]) {
    part.addEventListener("change", changed);
    part.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
        event.preventDefault();
        event.stopPropagation();
        ask();
      }
    });
  }
  const put = (control, value) => {
    const text = value === null || value === undefined ? "" : String(value);
    if (control !== control.ownerDocument.activeElement && control.value !== text) control.value = text;
  };
  return {
    root,
    more,
    read,
    strength: { input: inputs.strength, label: labels.strength },
    draw() {
      const settings = model.get("settings");
      for (const name of ["clip_skip", "frames"]) labels[name].hidden = !(name in settings);
      const { schedulers, negative: reads } = model.get("view");
      if (schedulers.length !== scheduler.options.length) {
        scheduler.replaceChildren(
          ...schedulers.map((name) => {
            const option = element("option", "", name.replaceAll("_", " "));
            option.value = name;
            return option;
          }),
        );
      }
      schedulerLabel.hidden = !schedulers.length;
      negativeLabel.hidden = !reads;
      put(prompt, settings.prompt);
      put(negative, settings.negative_prompt);
      put(seed, settings.seed);
      for (const name of Object.keys(inputs)) put(inputs[name], settings[name]);
      if (settings.scheduler) put(scheduler, settings.scheduler);
    },
  };
}

/** Files that are dropped or pasted: onto the fold, or from the clipboard, to begin with; elsewhere for their settings. */
function takeFiles(root, startRoot, model) {
  const pictureOf = (transfer) => [...(transfer?.files ?? [])].find((file) => file.type.startsWith("image/"));
  root.addEventListener("dragover", (event) => {
    if (![...event.dataTransfer.types].includes("Files")) return;
    event.preventDefault();
    event.stopPropagation();
    root.classList.add("ot-dropping");
  });
  root.addEventListener("dragleave", (event) => {
    if (!root.contains(event.relatedTarget)) root.classList.remove("ot-dropping");
  });
  root.addEventListener("drop", (event) => {
    root.classList.remove("ot-dropping");
    const file = pictureOf(event.dataTransfer);
    if (!file) return;
    event.preventDefault();
    event.stopPropagation();
    if (root.contains(document.activeElement)) document.activeElement.blur(); // what it holds may change, too
    sendFile(model, startRoot.contains(event.target) ? "start" : "png", file);
  });
  const text = ["text/plain", "text/html"]; // what office programs copy comes with a picture of itself
  root.addEventListener("paste", (event) => {
    const file = pictureOf(event.clipboardData);
    const written = text.every((type) => event.clipboardData?.types.includes(type));
    if (!file || (written && event.target.matches("input, textarea"))) return;
    event.preventDefault();
    event.stopPropagation();
    sendFile(model, "start", file);
  });
}

export default () => {
  let line;
  return {
    initialize({ model }) {
      line = connect(model);
      return () => line.close();
    },
    render({ model, el }) {
      const root = element("div", "ot ot-draw");
      const head = element("div", "ot-draw-head");
      const status = element("span", "ot-status");
      status.setAttribute("role", "status");
      const loader = createLoader(model);
      head.append(element("h3", "", "Inference"), status, loader.source, loader.load);
      const alerts = Object.fromEntries(PLACES.map((place) => [place, createAlert()]));
      const draw = button("ot-button ot-primary", "Draw", () => ask());
      draw.title = "Ctrl + Enter";
      const stop = button("ot-button ot-danger", "Stop", () => model.send({ op: "stop" }));
      stop.title = "Esc";
      const track = element("div", "ot-track");
      track.setAttribute("role", "progressbar");
      track.setAttribute("aria-label", "Steps of the picture");
      track.setAttribute("aria-valuemin", "0");
      track.setAttribute("aria-valuemax", "100");
      track.append(element("div", "ot-fill"));
      const form = createAsk(model, () => draw.click());
      const start = createStart(model, form.strength);
      const grid = createGrid(model, form.read);
      const loras = createLoras(model);
      const words = createWords(model);
      const show = createShow(model);
      const ask = async () => {
        if (!usable(draw)) return;
        await start.flush(); // the last stroke counts
        model.send({ op: "draw", settings: form.read() });
      };
      root.append(head, loader.root, alerts.model.node);
      takeFiles(root, start.root, model);
      const actions = element("div", "ot-draw-actions");
      actions.append(draw, stop, track);
      form.root.append(actions, alerts.draw.node); // what it says moves nothing that is in use
      for (const [place, part] of Object.entries({ start, loras, words, grid })) {
        form.more.append(part.root, alerts[place].node);
      }
      const body = element("div", "ot-draw-body");
      body.append(form.root, show.root, form.more);
      root.append(body);
      root.addEventListener("keydown", (event) => {
        if (event.key !== "Escape" || !usable(stop)) return;
        event.stopPropagation();
        stop.click();
      });
      el.append(root);

      const redraw = () => {
        const view = model.get("view");
        const busy = view.state === "drawing" || view.state === "loading";
        write(status, view.status);
        status.title = view.status;
        const at = view.notice?.place ?? "draw";
        for (const place of PLACES) alerts[place].fill(place === at ? view.notice : null);
        able(draw, view.state === "ready");
        able(stop, view.state === "drawing");
        loader.draw();
        track.style.visibility = busy ? "visible" : "hidden";
        track.setAttribute("aria-valuenow", String(Math.round(view.percent)));
        track.firstElementChild.style.width = `${view.percent}%`;
        form.draw();
        start.draw();
        loras.draw();
        words.draw();
        grid.draw();
        show.draw();
      };
      let queued = false; // several traits change together: draw them once
      const soon = () => {
        if (queued) return;
        queued = true;
        queueMicrotask(() => {
          queued = false;
          redraw();
        });
      };
      const watched = ["view", "settings", "picture", "history", "preview", "other", "start", "starts", "sheet"].map(
        (name) => `change:${name}`,
      );
      watched.forEach((event) => model.on(event, soon));
      redraw();
      const hidden = line.shown(el);
      return () => {
        watched.forEach((event) => model.off(event, soon));
        show.close();
        start.close();
        hidden();
      };
    },
  };
};
