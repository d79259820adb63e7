// Samples of a run, by prompt, newest first. Python holds the pictures; this file draws those that are seen.

const STRIP = 24; // pictures between the first and the latest that a card shows; the large view has all
const CARDS = 24; // prompts at once; more come as one scrolls
const ASK = 48; // pictures asked for at once

export default () => {
  let line;
  return {
    initialize({ model }) {
      line = connect(model, 1000);
      return () => line.close();
    },
    render({ model, el }) {
      const root = element("div", "ot ot-gallery");
      const heading = element("div", "ot-title");
      const note = element("span", "ot-caption");
      const chosen = element("span", "ot-caption");
      const clear = button("ot-link", "Clear", () => choose([]));
      heading.append(element("h3", "", "Samples"), note, chosen, clear);
      const filters = element("div", "ot-sample-filters");
      const search = element("input", "ot-input");
      search.type = "search";
      search.placeholder = "Prompts with these words";
      search.setAttribute("aria-label", "Prompts with these words");
      const steps = element("select", "ot-input");
      steps.setAttribute("aria-label", "Step");
      const kinds = element("select", "ot-input");
      kinds.setAttribute("aria-label", "Weights");
      kinds.append(...[["", "All weights"], ["ema", "Moving average"], ["raw", "Plain weights"]].map(([value, text]) => Object.assign(element("option", "", text), { value })));
      filters.append(search, steps, kinds);
      const prompts = element("div", "ot-prompts");
      const end = element("div");
      const empty = createEmpty("Samples appear here.", "Each prompt keeps its first and its latest.", 150);
      root.append(heading, filters, empty, prompts, end);
      el.append(root);

      const addresses = new Map(); // tile id -> address of its thumbnail
      const fetched = new Map(); // tile id -> tile whose picture was fetched
      const nodes = new Map(); // tile id -> its button
      const cards = new Map(); // prompt -> its card
      const wanted = new Set();
      let all = []; // every sample, oldest first
      let byId = new Map();
      let rows = new Map(); // prompt and weights -> its samples
      let shownCards = CARDS;

      const keyOf = (tile) => `${tile.raw ? "raw" : ""}|${tile.prompt}`;
      const url = (tile) => {
        if (!addresses.has(tile.id) && tile.image?.byteLength) addresses.set(tile.id, address(tile.image, tile.mime));
        return addresses.get(tile.id);
      };
      const askSoon = () => {
        if (!wanted.size || askSoon.waits) return;
        askSoon.waits = setTimeout(() => {
          askSoon.waits = 0;
          const ids = [...wanted].slice(0, ASK);
          ids.forEach((id) => wanted.delete(id));
          model.send({ op: "thumbs", ids });
        }, 60);
      };
      const want = (tiles) => {
        for (const tile of tiles) if (tile && tile.image === null && !fetched.has(tile.id) && !wanted.has(tile.id)) wanted.add(tile.id);
        askSoon();
      };
      const sight = new IntersectionObserver((entries) => {
        want(entries.filter((entry) => entry.isIntersecting).map((entry) => entry.target.tile));
      });
      const more = new IntersectionObserver((entries) => {
        if (entries.some((entry) => entry.isIntersecting) && shownCards < cards.size + CARDS && shownCards < found().length) {
          shownCards += CARDS;
          drawCards();
          more.unobserve(end); // it tells of changes alone: look again whether the end is still near
          more.observe(end);
        }
      }, { rootMargin: "400px" });
      more.observe(end);

      const choose = (ids) => {
        model.set("chosen", ids);
        model.save_changes();
      };
      const isChosen = (tile) => model.get("chosen").includes(tile.id);
      const toggle = (tile) => choose(isChosen(tile) ? model.get("chosen").filter((id) => id !== tile.id) : [...model.get("chosen"), tile.id]);
      const viewer = createViewer(root, model, { url, want, isChosen, toggle, all: () => all, row: (tile) => rows.get(keyOf(tile)) ?? [] });

      const dress = (node, tile) => {
        const image = node.firstElementChild;
        const src = url(tile);
        if (src && image.src !== src) image.src = src;
        image.classList.toggle("ot-crisp", tile.width > 0 && tile.width <= CRISP_PX);
        image.classList.toggle("ot-waits", !src);
        node.classList.toggle("ot-chosen", isChosen(tile));
        node.title = `${facts(tile)}\nCtrl and a click selects it`;
        node.setAttribute("aria-label", `${node.word} ${tile.prompt}, ${facts(tile)}${isChosen(tile) ? ", selected" : ""}`.trim());
      };
      const open = (tile) => {
        const row = shownOf(keyOf(tile));
        viewer.open(row, row.findIndex(({ id }) => id === tile.id));
      };
      const place = (tile, word) => {
        if (!nodes.has(tile.id)) {
          const node = button("ot-tile", undefined, (event) => (event.ctrlKey || event.metaKey ? toggle : open)(node.tile));
          const image = new Image();
          image.alt = "";
          node.append(image, element("small"));
          nodes.set(tile.id, node);
          sight.observe(node);
        }
        const node = nodes.get(tile.id);
        [node.tile, node.word] = [tile, word];
        dress(node, tile);
        const label = node.lastElementChild;
        if (word) label.replaceChildren(element("b", "", word), ` step ${tile.step}`);
        else label.textContent = String(tile.step);
        return node;
      };
      const drawCard = (key, row) => {
        if (!cards.has(key)) {
          const card = element("section", "ot-prompt");
          card.append(element("h4", "", `${row[0].prompt}${row[0].raw ? " (plain weights)" : ""}`), element("div", "ot-pair"), element("div", "ot-strip"));
          cards.set(key, card);
        }
        const card = cards.get(key);
        const now = `${row.length} ${row[0].id} ${row.at(-1).id} ${row.filter(isChosen).map(({ id }) => id)}`;
        if (card.drawn === now) return card; // most are as they were; their pictures come one by one
        card.drawn = now;
        const ends = row.length > 1 ? [row[0], row[row.length - 1]] : [row[0]];
        const between = row.slice(1, -1).slice(-STRIP).reverse();
        const strip = card.querySelector(".ot-strip");
        const hidden = row.length - 2 - between.length;
        arrange(card.children[1], [...ends.map((tile, index) => place(tile, row.length > 1 ? ["First", "Latest"][index] : "First")), strip]);
        const rest = hidden > 0 ? [button("ot-link ot-rest", `and ${hidden} more`, () => viewer.open(shownOf(key), hidden))] : [];
        arrange(strip, [...between.map((tile) => place(tile, "")), ...rest]);
        return card;
      };
      /** The samples of a prompt, of the step that is chosen. */
      const shownOf = (key) => {
        const row = rows.get(key) ?? [];
        return steps.value ? row.filter((tile) => String(tile.step) === steps.value) : row;
      };
      const found = () => {
        const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
        return [...rows].filter(([, [first]]) => {
          const text = first.prompt.toLowerCase();
          return words.every((word) => text.includes(word)) && (!kinds.value || (kinds.value === "raw") === Boolean(first.raw));
        });
      };
      const drawCards = () => {
        const list = found().map(([key]) => [key, shownOf(key)]).filter(([, row]) => row.length);
        const shown = list.slice(0, shownCards);
        const keys = new Set(shown.map(([key]) => key));
        for (const key of [...cards.keys()].filter((key) => !keys.has(key))) cards.delete(key);
        arrange(prompts, shown.map(([key, row]) => drawCard(key, row)));
        for (const [id, node] of nodes) {
          if (node.isConnected || !root.isConnected) continue;
          sight.unobserve(node);
          nodes.delete(id);
        }
      };
      const draw = () => {
        all = [...model.get("others").map((one) => fetched.get(one.id) ?? { ...one, image: null }), ...model.get("archive"), ...model.get("recent")];
        all.sort((a, b) => a.id - b.id);
        rows = new Map();
        for (const tile of all) {
          const key = keyOf(tile);
          if (!rows.has(key)) rows.set(key, []);
          rows.get(key).push(tile);
        }
        byId = new Map(all.map((tile) => [tile.id, tile]));
        for (const [id, node] of nodes) {
          if (!byId.has(id)) continue;
          node.tile = byId.get(id);
          dress(node, node.tile);
        }
        for (const id of [...addresses.keys()].filter((id) => !byId.has(id) && !fetched.has(id))) {
          URL.revokeObjectURL(addresses.get(id));
          addresses.delete(id);
        }
        const known = [...new Set(all.map((tile) => tile.step))].sort((a, b) => b - a);
        if (steps.options.length !== known.length + 1) {
          const was = steps.value;
          steps.replaceChildren(Object.assign(element("option", "", "All steps"), { value: "" }), ...known.map((step) => Object.assign(element("option", "", `Step ${step}`), { value: String(step) })));
          steps.value = was;
        }
        kinds.hidden = !all.some((tile) => tile.raw);
        filters.hidden = rows.size < 2 && kinds.hidden;
        const count = model.get("chosen").length;
        chosen.textContent = count ? `${count} selected` : "";
        clear.hidden = !count;
        drawCards();
        empty.hidden = all.length > 0;
        empty.style.display = all.length ? "none" : "";
        note.textContent = model.get("note");
        viewer.renew();
      };
      let queued = false; // archive and recent change together: draw them once
      const drawSoon = () => {
        if (queued) return;
        queued = true;
        queueMicrotask(() => {
          queued = false;
          draw();
        });
      };
      const received = (message, buffers) => {
        if (message.op !== "thumbs") return;
        message.tiles.forEach((tile, index) => {
          const image = buffers[index];
          fetched.set(tile.id, { ...tile, image });
          if (image.byteLength) addresses.set(tile.id, address(image, tile.mime));
          const known = byId.get(tile.id);
          if (!known) return;
          Object.assign(known, tile, { image }); // in place: to draw all anew would take ten thousand looks
          const node = nodes.get(tile.id);
          if (node) dress(node, known);
        });
        askSoon();
        viewer.renew();
      };
      model.on("msg:custom", received);
      search.oninput = drawCards;
      steps.onchange = drawCards;
      kinds.onchange = drawCards;
      const watched = ["change:archive", "change:recent", "change:others", "change:note", "change:chosen", "change:can_use"];
      watched.forEach((event) => model.on(event, drawSoon));
      draw();
      const hidden = line.shown(el);
      return () => {
        watched.forEach((event) => model.off(event, drawSoon));
        model.off("msg:custom", received);
        sight.disconnect();
        more.disconnect();
        viewer.close();
        for (const one of addresses.values()) URL.revokeObjectURL(one);
        hidden();
      };
    },
  };
};
