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
      const draw = () => {
        const current = model.get("current");
        const known = new Map([...root.children].map((node) => [node.dataset.name, node]));
        const nodes = model.get("tabs").map(([name, label]) => {
          const node = known.get(name) ?? button("ot-tab", label, () => model.send({ op: "open", name }));
          node.dataset.name = name;
          if (name === current) node.setAttribute("aria-current", "page");
          else node.removeAttribute("aria-current");
          return node;
        });
        arrange(root, nodes);
      };
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
