// The parts of the studio, of which one is open. Python puts it on the page; this file asks for it.

export default () => {
  let line;
  return {
    initialize({ model }) {
      line = connect(model, 2000);
      return () => line.close();
    },
    render({ model, el }) {
      const root = element("nav", "ot ot-tabs");
      root.setAttribute("aria-label", "Parts of the studio");
      el.append(root);
      const makeTab = ([name, label]) => {
        const node = button("ot-tab", label, () => model.send({ op: "open", name }));
        return {
          node,
          fill() {
            if (name === model.get("current")) node.setAttribute("aria-current", "page");
            else node.removeAttribute("aria-current");
          },
        };
      };
      const draw = () => each(root, model.get("tabs"), makeTab, ([name]) => name);
      root.onkeydown = (event) => {
        const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
        const nodes = [...root.children];
        const at = nodes.indexOf(document.activeElement);
        if (by && at >= 0) nodes[(at + by + nodes.length) % nodes.length].focus();
      };
      const watched = ["change:current", "change:tabs"];
      watched.forEach((event) => model.on(event, draw));
      draw();
      const hidden = line.shown(el);
      return () => {
        watched.forEach((event) => model.off(event, draw));
        hidden();
      };
    },
  };
};
