// Grids: settings on up to three axes. Joined in front of inference.js.

const HINTS = {
  prompt: "a fox | an owl",
  negative_prompt: "blue | red",
  scheduler: "DDIM, EULER_A",
  seed: "1-5",
  steps: "4, 10, 20",
  cfg_scale: "1, 3, 7",
  save: "id or folder of a run; empty for the newest",
};
const TITLES = {
  prompt: "Prompt", negative_prompt: "Negative prompt", seed: "Seed", width: "Width", height: "Height", steps: "Steps",
  cfg_scale: "Guidance", scheduler: "Scheduler", clip_skip: "Clip skip", strength: "Strength", lora: "First LoRA",
  save: "Saves of a run",
};

/** @param {() => object} read gives the settings of the form. */
function createGrid(model, read) {
  const { root, body, note } = fold("Grid of settings");
  const rows = ["Across", "Down", "Sheets"].map((title) => {
    const line = element("div", "ot-axis");
    const select = element("select", "ot-input");
    select.setAttribute("aria-label", `${title}: setting`);
    const values = element("input", "ot-input");
    values.setAttribute("aria-label", `${title}: values`);
    select.onchange = () => {
      values.placeholder = HINTS[select.value] ?? "0, 0.5, 1";
      values.disabled = !select.value;
    };
    values.onkeydown = (event) => {
      if (event.key === "Enter") start();
    };
    line.append(element("span", "", title), select, values);
    body.append(line);
    return { select, values };
  });
  const start = () => {
    if (!usable(go)) return;
    const axes = rows.filter(({ select }) => select.value).map(({ select, values }) => [select.value, values.value]);
    model.send({ op: "grid", axes, settings: read() });
  };
  const go = button("ot-button ot-small", "Draw grid", start);
  const over = button("ot-button ot-small", "Over all saves of the newest run", () => {
    if (usable(over)) model.send({ op: "grid", axes: [["save", ""]], settings: read() });
  });
  const line = element("div", "ot-buttons");
  line.append(go, over);
  body.append(line);
  let known = "";
  return {
    root,
    draw() {
      const { axes, state, series } = model.get("view");
      able(go, state === "ready");
      able(over, state === "ready");
      write(note, series.length ? `${series.length} pictures` : "");
      if (axes.join() === known) return;
      known = axes.join();
      for (const { select, values } of rows) {
        const chosen = select.value;
        const option = (value, text) => Object.assign(element("option", "", text), { value });
        select.replaceChildren(option("", "nothing"), ...axes.map((name) => option(name, TITLES[name] ?? name.replace("lora:", "LoRA "))));
        select.value = axes.includes(chosen) ? chosen : "";
        values.disabled = !select.value;
        if (!select.value) values.placeholder = "";
      }
    },
  };
}
