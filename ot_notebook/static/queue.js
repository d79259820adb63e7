// The queue of runs. Python writes every text; this file draws `view` and reports what is pressed.

const ICON_OPS = { up: "up", down: "down", remove: "remove" };

function createJob(id, send) {
  const node = element("li", "ot-job");
  const badge = element("span", "ot-badge");
  const words = element("div", "ot-job-words");
  const name = element("b");
  const about = element("div", "ot-caption");
  const track = element("div", "ot-track");
  track.setAttribute("role", "progressbar");
  track.setAttribute("aria-valuemin", "0");
  track.setAttribute("aria-valuemax", "100");
  const fill = element("div", "ot-fill");
  track.append(fill);
  const error = element("div", "ot-job-error");
  words.append(name, about, track, error);
  const tools = element("div", "ot-job-tools");
  node.append(badge, words, tools);
  const makeButton = ({ op, label, hint }) => {
    const press = () => usable(one) && send({ op, id });
    const one = ICON_OPS[op] ? iconButton(ICON_OPS[op], hint, press) : button("ot-button ot-small", label, press);
    return {
      node: one,
      fill({ label: now, hint: more, enabled }) {
        if (!ICON_OPS[op]) write(one, now);
        one.title = more;
        one.setAttribute("aria-label", more);
        able(one, enabled);
      },
    };
  };
  return {
    node,
    fill(row) {
      node.className = `ot-job ot-tone-${row.tone}`;
      write(badge, row.label);
      write(name, row.name);
      write(about, row.about);
      about.title = row.about;
      write(error, row.error);
      error.hidden = !row.error;
      track.hidden = row.percent === null;
      if (row.percent !== null) {
        track.setAttribute("aria-label", `Progress of ${row.name}`);
        track.setAttribute("aria-valuenow", String(Math.round(row.percent)));
        fill.style.width = `${row.percent}%`;
      }
      each(tools, row.buttons, makeButton, ({ op }) => op);
    },
  };
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
      const root = element("div", "ot ot-queue");
      const head = element("div", "ot-head");
      const badge = element("span", "ot-badge");
      badge.setAttribute("role", "status");
      const summary = element("span", "ot-status");
      const tools = element("div", "ot-buttons");
      const start = button("ot-button ot-primary", "Start", () => usable(start) && send({ op: "start" }));
      const pause = button("ot-button", "Pause", () => usable(pause) && send({ op: "pause" }));
      const clear = button("ot-button", "Clear ended", () => usable(clear) && send({ op: "clear" }));
      start.title = "Run what waits, one after another";
      pause.title = "Start no other job; the one that runs goes on";
      clear.title = "Take out the jobs that have ended; their files stay";
      tools.append(start, pause, clear);
      head.append(element("h3", "", "Queue"), badge, summary, tools);
      const alert = createAlert();
      const add = element("div", "ot-ask");
      const name = element("input", "ot-input");
      name.type = "text";
      name.placeholder = "Name of the job";
      name.setAttribute("aria-label", "Name of the job");
      const put = () => {
        send({ op: "add", name: name.value });
        name.value = "";
      };
      name.onkeydown = (event) => {
        if (event.key === "Enter") put(); // a page of JupyterLab submits no form by Enter
      };
      add.append(name, button("ot-button", "Add these settings", put));
      const list = element("ul", "ot-jobs");
      list.setAttribute("aria-label", "Jobs");
      const empty = createEmpty("No jobs yet.", "Add the settings of a form, or ot.queue().add(job.config).", 110);
      root.append(head, alert.node, add, list, empty);
      el.append(root);

      const draw = keepingFocus(root, () => {
        const view = model.get("view");
        if (!view?.jobs) return;
        head.className = `ot-head ot-tone-${view.tone}`; // not the root: jobs have tones of their own
        write(badge, view.label);
        write(summary, view.summary);
        able(start, view.can_start && !view.active);
        able(pause, view.active);
        able(clear, view.can_clear);
        add.hidden = !view.can_add;
        alert.fill(view.alert);
        each(list, view.jobs, ({ id }) => createJob(id, send), ({ id }) => id);
        list.hidden = !view.jobs.length;
        empty.hidden = view.jobs.length > 0;
      });
      model.on("change:view", draw);
      draw();
      const hidden = line.shown(el);
      return () => {
        model.off("change:view", draw);
        hidden();
      };
    },
  };
};
