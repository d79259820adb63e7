// The last lines of a run's log, newest last, by level and words. Follows the end unless one has scrolled up.

const LEVELS = [["", "All"], ["warning", "Warnings and errors"], ["error", "Errors"]];
const RANK = { info: 0, warning: 1, error: 2 };

export default {
  render({ model, el }) {
    const box = element("div", "ot ot-console");
    const tools = element("div", "ot-console-tools");
    const level = element("select", "ot-input");
    level.setAttribute("aria-label", "Lines of the log");
    level.append(...LEVELS.map(([value, text]) => Object.assign(element("option", "", text), { value })));
    const search = element("input", "ot-input");
    search.type = "search";
    search.placeholder = "Search the log";
    search.setAttribute("aria-label", "Search the log");
    tools.append(element("span", "", "Log"), level, search);
    const root = element("div", "ot-log");
    root.tabIndex = 0; // scrollable, so a keyboard must reach it
    root.setAttribute("role", "log");
    root.setAttribute("aria-label", "Log of the run");
    root.setAttribute("aria-live", "off"); // the badge speaks; a busy log would never be silent
    root.dataset.lmSuppressShortcuts = "true";
    const list = document.createElement("ol");
    root.append(list);
    box.append(tools, root);
    el.append(box);

    const makeRow = ({ time, level: kind, text }) => {
      const item = document.createElement("li");
      item.className = `ot-${kind}`;
      const stamp = document.createElement("time");
      stamp.textContent = time;
      item.append(stamp, text);
      return { node: item, fill() {} }; // a line that was said stays as it is
    };
    const none = document.createElement("li");
    none.className = "ot-none";
    const wanted = (line) =>
      (RANK[line.level] ?? 0) >= (RANK[level.value] ?? 0) && line.text.toLowerCase().includes(search.value.trim().toLowerCase());
    const draw = () => {
      const follow = root.scrollHeight - root.scrollTop - root.clientHeight < 24;
      const all = model.get("lines");
      const lines = all.filter(wanted);
      if (!lines.length) {
        none.textContent = all.length ? "No line is like that." : "What the run says appears here.";
        return list.replaceChildren(none);
      }
      none.remove();
      each(list, lines, makeRow, ({ id }) => id);
      if (follow) root.scrollTop = root.scrollHeight;
    };
    level.onchange = draw;
    search.oninput = draw;
    model.on("change:lines", draw);
    draw();
    requestAnimationFrame(() => {
      root.scrollTop = root.scrollHeight; // known only once the page has laid it out
    });
    return () => model.off("change:lines", draw);
  },
};
