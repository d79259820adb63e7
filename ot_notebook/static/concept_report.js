// The report on the set. Python writes it, escaped; here it is shown, and its names lead to images. Joined
// in front of concepts.js.

const REPORT_MS = 700; // until it is asked again whether the report is ready

/**
 * @param {object} model the widget.
 * @param {(filter: object) => void} show lists the images that a filter finds.
 */
function createReport(model, show) {
  const node = element("div", "ot-report");
  const words = element("p", "ot-caption");
  words.setAttribute("role", "status");
  const body = element("div");
  node.append(words, body);
  let shown = false;
  let have = -1;
  let timer = 0;
  const ask = () => {
    clearTimeout(timer);
    if (!shown) return;
    const { version, scanning } = model.get("head");
    if (have === version) return;
    if (!scanning) model.send({ op: "report", version });
    timer = setTimeout(ask, REPORT_MS);
  };
  const received = (message) => {
    if (message.op !== "report") return;
    if (!message.ready) {
      if (!body.firstChild) write(words, "Reading the set");
      return;
    }
    have = message.version;
    write(words, message.why);
    words.hidden = !message.why;
    words.classList.toggle("ot-bad-words", Boolean(message.why));
    body.innerHTML = message.html;
    ask();
  };
  node.onclick = (event) => {
    const { name, problem } = event.target.closest("[data-name], [data-problem]")?.dataset ?? {};
    if (name) show({ text: name.replace(/(^|\s)-+(?=\S)/g, "$1") }); // a search leaves out what - stands before
    else if (problem) show({ problem });
  };
  model.on("msg:custom", received);
  return {
    node,
    follow: ask,
    show(now) {
      shown = now;
      node.hidden = !now;
      ask();
    },
    close() {
      clearTimeout(timer);
      model.off("msg:custom", received);
    },
  };
}
