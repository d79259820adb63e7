// The last lines of a run's log, newest last. Follows the end unless the reader has scrolled up.

export default {
  render({ model, el }) {
    const root = document.createElement("div");
    root.className = "ot ot-log";
    root.tabIndex = 0; // scrollable, so a keyboard must reach it
    root.setAttribute("role", "log");
    root.setAttribute("aria-label", "Log of the run");
    root.setAttribute("aria-live", "off"); // the badge speaks; a busy log would never be silent
    root.dataset.lmSuppressShortcuts = "true";
    const list = document.createElement("ol");
    root.append(list);
    el.append(root);

    const row = ({ id, time, level, text }) => {
      const item = document.createElement("li");
      item.className = `ot-${level}`;
      item.dataset.id = id;
      const stamp = document.createElement("time");
      stamp.textContent = time;
      item.append(stamp, text);
      return item;
    };
    const none = document.createElement("li");
    none.className = "ot-none";
    none.textContent = "What the run says appears here.";
    const draw = () => {
      const follow = root.scrollHeight - root.scrollTop - root.clientHeight < 24;
      const lines = model.get("lines");
      if (!lines.length) return list.replaceChildren(none);
      none.remove();
      const kept = new Set(lines.map((line) => String(line.id)));
      for (const item of [...list.children]) if (!kept.has(item.dataset.id)) item.remove();
      const shown = new Set([...list.children].map((item) => item.dataset.id));
      list.append(...lines.filter((line) => !shown.has(String(line.id))).map(row));
      if (follow) root.scrollTop = root.scrollHeight;
    };
    model.on("change:lines", draw);
    draw();
    requestAnimationFrame(() => {
      root.scrollTop = root.scrollHeight; // known only once the page has laid it out
    });
    return () => model.off("change:lines", draw);
  },
};
