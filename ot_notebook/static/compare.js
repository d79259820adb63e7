// Runs beside one another. Python writes every text and places every curve; this file draws them.

function cell(tag, text, className) {
  return element(tag, className, text);
}

function createRun(key, send) {
  const node = element("tr");
  const box = element("input");
  box.type = "checkbox";
  box.onchange = () => send({ op: "choose", key, on: box.checked });
  const first = element("td");
  const label = element("label", "ot-run-name");
  const swatch = element("span", "ot-swatch");
  const name = element("span");
  label.append(box, swatch, name);
  first.append(label);
  const badge = element("span", "ot-badge");
  const state = element("td");
  state.append(badge);
  const [started, steps, loss, model] = [1, 2, 3, 4].map(() => element("td"));
  node.append(first, state, started, steps, loss, model);
  return {
    node,
    fill(row, colours) {
      node.className = `ot-tone-${row.tone}`;
      box.checked = row.colour !== null; // a refused choice shows as it is
      swatch.style.background = row.colour === null ? "transparent" : colours[row.colour];
      write(name, row.id);
      write(badge, row.label);
      write(started, row.started);
      write(steps, row.steps);
      write(loss, row.loss);
      write(model, row.model);
      node.title = row.workspace;
    },
  };
}

function tableOf(names, first, rows) {
  const table = element("table", "ot-table");
  const head = element("tr");
  head.append(cell("th", first), ...names.map((name) => cell("th", name)));
  table.append(head, ...rows);
  return table;
}

export default () => {
  let line;
  return {
    initialize({ model }) {
      line = connect(model, 1000);
      return () => line.close();
    },
    render({ model, el }) {
      const send = (message) => model.send(message);
      const root = element("div", "ot ot-compare");
      const head = element("div", "ot-head");
      const summary = element("span", "ot-status");
      head.append(element("h3", "", "Runs"), summary, button("ot-button", "Refresh", () => send({ op: "refresh" })));
      const alert = createAlert();

      const runs = element("div", "ot-scroll ot-runs");
      runs.tabIndex = 0; // scrollable, so a keyboard must reach it
      runs.setAttribute("role", "group");
      runs.setAttribute("aria-label", "Runs to compare");
      runs.dataset.lmSuppressShortcuts = "true";
      const table = tableOf(["State", "Started", "Steps", "Loss", "Model"], "Run", []);
      runs.append(table);
      const header = table.firstElementChild;

      const tools = element("div", "ot-compare-tools");
      const metric = element("select", "ot-input");
      metric.setAttribute("aria-label", "Curve");
      metric.onchange = () => send({ op: "metric", name: metric.value });
      const log = element("input");
      log.type = "checkbox";
      log.onchange = () => send({ op: "log", on: log.checked });
      const logLabel = element("label");
      logLabel.append(log, " logarithmic");
      const key = element("div", "ot-compare-key");
      tools.append(metric, logLabel, key);
      const svg = shape("svg", { class: "ot-overlay", role: "img" });
      const caption = element("div", "ot-caption");
      const readout = createReadout(svg);
      const curves = element("div");
      curves.append(tools, svg, readout.node, caption);

      const settings = element("div");
      const samples = element("div");
      const none = createEmpty("No runs yet.", "Train one, or name its workspace: ot.RunCompare('folder').", 110);
      const alone = createEmpty("No runs are compared.", "Choose two or more in the table.", 110);
      root.append(head, alert.node, none, runs, curves, alone, settings, samples);
      el.append(root);

      const pictures = createPictures();
      const large = createLarge(root, model, pictures.url);
      const drawSettings = ({ names, differences, more_differences: more }) => {
        settings.hidden = names.length < 2;
        const title = element("h3", "ot-title", "Settings that differ");
        if (!differences.length) {
          return settings.replaceChildren(title, element("p", "ot-caption", "None: these runs have the same settings."));
        }
        const body = differences.map(([path, ...values]) => {
          const row = element("tr");
          const name = element("td");
          name.append(element("code", "", path));
          row.append(name, ...values.map((value) => cell("td", value)));
          return row;
        });
        const box = scrolling("Settings that differ", tableOf(names, "Setting", body));
        settings.replaceChildren(title, box, ...(more ? [element("p", "ot-caption", `and ${more} more`)] : []));
      };
      const drawSamples = ({ names, samples: matrix }) => {
        samples.hidden = !matrix.length;
        pictures.clear();
        const body = matrix.map((line) => {
          const { prompt, seed, cells } = line;
          const row = element("tr");
          const words = element("td", "ot-matrix-prompt", prompt);
          words.append(element("small", "", `seed ${seed}`));
          row.append(words, ...cells.map((one) => pictures.cell(one, prompt, () => large.open(line, names))));
          return row;
        });
        const box = scrolling("Samples of the same prompt and seed", tableOf(names, "Prompt", body));
        samples.replaceChildren(element("h3", "ot-title", "Same prompt, same seed"), box);
      };
      const scrolling = (name, content) => {
        const box = element("div", "ot-scroll");
        box.tabIndex = 0;
        box.setAttribute("role", "group");
        box.setAttribute("aria-label", name);
        box.dataset.lmSuppressShortcuts = "true";
        box.append(content);
        return box;
      };
      let shownSamples;
      const draw = keepingFocus(root, () => {
        const view = model.get("view");
        if (!view?.runs) return;
        write(summary, view.summary);
        alert.fill(view.alert);
        const makeRow = (run) => {
          if (!run) return { node: header, fill() {} };
          const { node, fill } = createRun(run.key, send);
          return { node, fill: (now) => fill(now, model.get("view").colours) };
        };
        each(table, [null, ...view.runs], makeRow, (run) => run?.key);
        if (metric.options.length !== view.metrics.length) {
          metric.replaceChildren(...view.metrics.map(([value, text]) => Object.assign(element("option", "", text), { value })));
        }
        metric.value = view.metric;
        log.checked = view.log;
        none.hidden = view.runs.length > 0;
        runs.hidden = !view.runs.length;
        curves.hidden = !view.names.length;
        alone.hidden = view.names.length > 0 || !view.runs.length;
        key.replaceChildren(
          ...view.curves.lines.map(({ name, colour }) => {
            const entry = element("span", "", name);
            const mark = element("i", "ot-swatch");
            mark.style.background = colour;
            entry.prepend(mark);
            return entry;
          }),
        );
        drawCurves(svg, view.curves);
        readout.fill(view.curves);
        write(caption, view.caption);
        drawSettings(view);
        const now = JSON.stringify(view.samples.map(({ prompt, seed, cells }) => [prompt, seed, cells.map((one) => one?.id)]));
        if (now !== shownSamples) drawSamples(view);
        shownSamples = now;
      });
      model.on("change:view", draw);
      draw();
      const hidden = line.shown(el);
      return () => {
        model.off("change:view", draw);
        pictures.clear();
        large.close();
        hidden();
      };
    },
  };
};
