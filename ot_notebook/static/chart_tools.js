// Above the chart: what is drawn, and the controls that change it. Python writes every text.

const RANGES = [["all", "All steps"], ["half", "Newest half"], ["tenth", "Newest tenth"]];

export default {
  render({ model, el }) {
    const send = (message) => model.send(message);
    const option = (value, text) => Object.assign(element("option", "", text), { value });
    const root = element("div", "ot ot-chart-tools");
    const row = element("div", "ot-chart-row");
    const series = element("select", "ot-input ot-chart-series");
    series.setAttribute("aria-label", "Curve");
    series.onchange = () => send({ op: "series", name: series.value });
    const range = element("select", "ot-input");
    range.setAttribute("aria-label", "Steps that are drawn");
    range.append(...RANGES.map(([value, text]) => option(value, text)));
    range.onchange = () => send({ op: "range", name: range.value });
    const toggle = (name, label, hint) => {
      const node = button("ot-toggle", label, () => send({ op: name, on: node.getAttribute("aria-pressed") !== "true" }));
      node.title = hint;
      return node;
    };
    const log = toggle("log", "Log", "Logarithmic values");
    const zoom = toggle("zoom", "Zoom", "Drag moves, the wheel zooms; switched off, the chart follows the run again");
    const others = element("details", "ot-chart-others");
    const summary = element("summary", "ot-toggle", "Other runs");
    const list = element("div", "ot-chart-list");
    others.append(summary, list);
    others.ontoggle = () => others.open && send({ op: "others" });
    others.onkeydown = (event) => {
      if (event.key !== "Escape") return;
      others.open = false;
      summary.focus();
    };
    row.append(series, range, log, zoom, others);
    const key = element("div", "ot-chart-key");
    const caption = element("div", "ot-caption");
    root.append(row, key, caption);
    el.append(root);

    const makeOther = ({ key: name, label }) => {
      const node = element("label");
      const box = element("input");
      box.type = "checkbox";
      box.onchange = () => send({ op: "other", key: name, on: box.checked });
      node.append(box, ` ${label}`);
      return { node, fill: ({ colour }) => (box.checked = colour !== null) };
    };
    const drawOthers = (runs) => {
      if (!runs.length) return list.replaceChildren(element("span", "ot-caption", "There are no other runs."));
      each(list, runs, makeOther, ({ key: name }) => name);
    };
    const draw = () => {
      const view = model.get("view");
      if (!view?.choices) return;
      if (!series.options.length) series.append(...view.choices.map(([value, text]) => option(value, text)));
      series.value = view.series;
      range.value = view.range;
      log.setAttribute("aria-pressed", String(view.log));
      zoom.setAttribute("aria-pressed", String(view.zoom));
      const text = JSON.stringify(view.key);
      if (key.dataset.now !== text) {
        key.dataset.now = text;
        key.replaceChildren(...view.key.map(([name, colour, kind]) => {
          const node = element("span", "", name);
          const mark = element("i", `ot-key-${kind}`);
          mark.style.setProperty("--ot-mark", colour);
          node.prepend(mark);
          return node;
        }));
      }
      drawOthers(view.others);
      write(caption, view.caption);
    };
    model.on("change:view", draw);
    draw();
    return () => model.off("change:view", draw);
  },
};
