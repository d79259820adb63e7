// The sizes that images train at: how many take each, what its crop keeps, what trains when. Joined in
// front of concepts.js.

/** Width and height of a bucket such as "832x480" or "832x480, 25 frames". */
const edges = (bucket) => bucket.split("x").map((edge) => Number.parseFloat(edge));

/**
 * @param {object} model the widget.
 * @param {(bucket: string) => void} show lists the images of a bucket.
 */
function createBuckets(model, show) {
  const node = element("div", "ot-buckets");
  const words = element("p", "ot-caption");
  words.setAttribute("role", "status");
  const table = element("table", "ot-bucket-table");
  const head = element("tr");
  for (const [label, className] of [["Size", ""], ["Images", ""], ["Crops keep", ""], ["What trains when", "ot-when"]]) {
    const cell = element("th", className, label);
    cell.scope = "col";
    head.append(cell);
  }
  const top = element("thead");
  top.append(head);
  const body = element("tbody");
  table.append(top, body);
  node.append(words, table);
  let asked = -1;
  let shown = false;

  const meter = (share, text, unit) => {
    const box = element("span", "ot-share");
    const bar = element("span", "ot-share-bar");
    bar.append(Object.assign(element("span"), { style: `width: ${Math.round(100 * share)}%` }));
    const words = element("span", "", text);
    words.append(element("span", "ot-cell-unit", ` ${unit}`)); // where there is no head of the table
    box.append(bar, words);
    return box;
  };
  const shape = (bucket) => {
    const [width, height] = edges(bucket);
    const scale = 22 / Math.max(width, height);
    const box = element("span", "ot-shape");
    const inner = element("span");
    inner.style.width = `${Math.max(4, Math.round(width * scale))}px`;
    inner.style.height = `${Math.max(4, Math.round(height * scale))}px`;
    box.append(inner);
    box.setAttribute("aria-hidden", "true");
    return box;
  };
  const line = (row, most) => {
    const tr = element("tr");
    const size = element("th");
    size.scope = "row";
    const link = button("ot-link ot-bucket-link", undefined, () => show(row.bucket));
    link.append(shape(row.bucket), row.bucket.replace("x", " × "));
    link.title = "Show its images";
    size.append(link);
    const count = element("td");
    count.append(meter(row.images / most, row.images.toLocaleString(), "images"));
    if (row.smaller) count.append(element("small", "", `${row.smaller.toLocaleString()} smaller than that`));
    const kept = element("td");
    kept.append(meter(row.kept, `${Math.floor(100 * row.kept)} %`, "kept"));
    const when = element("td", "ot-when", row.when);
    if (row.dropped || !row.looks) when.classList.add("ot-bad-words");
    tr.append(size, count, kept, when);
    return tr;
  };
  const received = (message) => {
    if (message.op !== "buckets") return;
    const { rows, why } = message;
    const most = Math.max(1, ...rows.map((row) => row.images));
    const aspect = ({ bucket }) => edges(bucket).reduce((width, height) => width / height);
    const ordered = [...rows].sort((one, other) => aspect(other) - aspect(one)); // from lying to upright
    body.replaceChildren(...ordered.map((row) => line(row, most)));
    table.hidden = !rows.length;
    const total = rows.reduce((sum, row) => sum + row.batches, 0);
    words.classList.toggle("ot-bad-words", Boolean(why));
    const many = `${rows.length.toLocaleString()} ${rows.length === 1 ? "size" : "sizes"}`;
    const batches = `${total.toLocaleString()} ${total === 1 ? "batch" : "batches"}`;
    write(words, why || (rows.length ? `${many}, ${batches} in an epoch.` : "No image trains."));
  };
  model.on("msg:custom", received);
  const follow = () => {
    const { version, scanning } = model.get("head");
    if (!shown || scanning || asked === version) return;
    asked = version;
    model.send({ op: "buckets" });
  };
  return {
    node,
    follow,
    show(now) {
      shown = now;
      node.hidden = !now;
      follow();
    },
    close: () => model.off("msg:custom", received),
  };
}
