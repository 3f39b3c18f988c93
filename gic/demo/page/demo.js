// The demo: sends a picture and wishes to the program that serves this page, and shows its answers. stage.js comes before.

const pageId = `${Date.now()}-${Math.random()}`;
const PATIENCE = 1500; // ms that an answer may take before a newer wish ends it
const state = {
  source: null, // { file } or { example }
  name: "", // of the picture, for downloads
  picture: null, // the server's answer: id, width, height
  left: "original",
  right: "gic",
  range: null, // smallest and largest file, in bytes
  file: null,
  sides: { left: { name: "", metrics: {} }, right: { name: "", metrics: {} } },
};
let about = null;
let stage = null;

// ---- Asking ---------------------------------------------------------------------------------------------------

let number = 0; // of the newest request; answers to others are dropped
let asking = null; // the AbortController of the request that is not answered yet

function busy(text) {
  $("status").dataset.state = text == null ? "idle" : "busy";
  if (text != null) $("status").textContent = text; // the last stays while it fades
}

// Send a request, and hand each event of its answer to `take` while it is the newest; true if it came to its end.
async function ask(path, body, take, what = "") {
  asking?.abort();
  const mine = ++number;
  asking = new AbortController();
  busy("working");
  try {
    const [url, content] =
      body instanceof Blob
        ? [`${path}&${new URLSearchParams({ page: pageId, number: mine })}`, body]
        : [path, JSON.stringify({ ...body, page: pageId, number: mine })];
    const answer = await fetch(url, { method: "POST", body: content, signal: asking.signal });
    if (!answer.ok) throw new Error(await answer.text());
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (mine !== number) return false;
      if (done) throw new Error("The answer broke off.");
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const event of lines.map((line) => JSON.parse(line))) {
        if (event.event === "done") return true;
        if (event.event === "superseded") return false;
        if (event.event === "error") throw new Error(event.text);
        if (event.event === "status") busy(event.of ? `${event.text}, ${event.done} of ${event.of} tiles` : event.text);
        else take(event);
      }
    }
  } catch (error) {
    if (mine !== number) return false;
    const lost = error instanceof TypeError; // of fetch
    fail(lost ? "The program that serves this page does not answer: start gic demo again, then reload the page." : what + error.message);
    return false;
  } finally {
    if (mine === number) {
      asking = null;
      busy(null);
    }
  }
}

function fail(text) {
  if (text) stop();
  $("error").textContent = text;
  $("error").hidden = !text;
}

// ---- The picture ----------------------------------------------------------------------------------------------

async function take(source, name) {
  stop();
  fail("");
  if (source.file && source.file.size > about.max_bytes) {
    fail(`${name} has ${bytesText(source.file.size)}; at most ${bytesText(about.max_bytes)} are taken.`);
    return;
  }
  let taken = null;
  const hear = (event) => (taken = event);
  const whole = $("whole").checked;
  const ended = source.file
    ? await ask(`/api/pictures?whole=${Number(whole)}`, source.file, hear, `${name}: `)
    : await ask("/api/examples", { example: source.example, whole }, hear, `${name}: `);
  if (!ended || !taken) return;
  Object.assign(state, { source, name, picture: taken, range: null });
  if (source.file) $("example").value = "";
  describe();
  document.body.classList.remove("empty");
  $("drop-text").textContent = "Another picture: drop or paste it, or";
  $("viewer").hidden = false;
  if (!stage) {
    stage = makeStage(() => state.picture);
    $("stage").append($("status"));
  }
  clear();
  wish();
}

function describe() {
  const { width, height, whole, notes } = state.picture;
  const size = (w, h) => `${w.toLocaleString("en")} × ${h.toLocaleString("en")} pixels`;
  const reduced = width !== whole[0] || height !== whole[1];
  const parts = [size(width, height), ...(reduced ? [`reduced from ${size(...whole)} for quick answers`] : []), ...notes];
  $("about").replaceChildren(element("b", { textContent: state.name }), `: ${parts.join("; ")}`);
  $("about").hidden = false;
  const large = reduced || $("whole").checked;
  $("whole-label").hidden = !large;
  $("whole-label").lastElementChild.textContent = `all its ${((whole[0] * whole[1]) / 1e6).toFixed(1)} million pixels (slow)`;
}

// A file that was chosen, dropped or pasted.
function takeFile(file) {
  if (!about) return;
  if (!file) return fail("That is no file: save the picture first, then drop it here.");
  $("whole").checked = false;
  take({ file }, file.name || "picture");
}

// ---- Wishes ---------------------------------------------------------------------------------------------------

let sent = 0; // when the wish that is being answered was sent
let again = null; // a timer, where there is a newer one
let judging = null; // a timer

// Ask for what the controls say. While an answer is under way the newest wish waits for it, but not for long.
function wish() {
  labels();
  clearTimeout(again);
  clearTimeout(judging);
  again = judging = null;
  if (!state.picture) return;
  const left = asking && sent ? sent + PATIENCE - performance.now() : 0;
  if (left > 0) again = setTimeout(wish, left);
  else send();
}

async function send() {
  sent = performance.now();
  const of = wanted();
  const ended = await ask(
    "/api/compare",
    {
      picture: state.picture.id,
      size: $("size").value / $("size").max,
      realism: $("realism").value / $("realism").max,
      progressive: $("progressive").checked,
      received: $("progressive").checked ? $("received").value / 100 : 1,
      left: state.left,
      right: state.right,
    },
    (event) => hear({ ...event, of }),
  );
  sent = 0;
  if (again) wish();
  else if (ended) {
    if (playing) playing = setTimeout(grow, 60);
    else judging = setTimeout(judge, 400 + (state.picture.width * state.picture.height) / 2500);
  }
}

const url = (id) => `/pictures/${id}.png`;

// A new picture: nothing of the one before is left.
function clear() {
  state.file = null;
  for (const side of ["left", "right"]) {
    const original = state[side] === "original";
    state.sides[side] = { name: $(side).selectedOptions[0].textContent, metrics: {} };
    nameSide(side, state.sides[side]);
    stage.show(side, { id: original ? state.picture.id : null, alt: `${state.name}, ${side}: original`, url, missing: "" });
  }
  advise(about.advice);
  for (const link of ["download-gic", "download-png"]) offer($(link), null);
  table();
  stage.centre();
}

function hear(event) {
  if (event.event === "range") {
    state.range = event;
    labels();
  } else if (event.event === "file") {
    state.file = event;
    labels();
    offer($("download-gic"), event.id && `/files/${event.id}.gic`, `${stem()}.gic`);
  } else if (event.event === "side") {
    fail("");
    state.sides[event.side] = event;
    const id = event.picture;
    const alt = `${state.name}, ${event.side}: ${event.name}`;
    nameSide(event.side, event);
    stage.show(event.side, { id, alt, url, missing: event.missing });
    const decoded = [state.sides.right, state.sides.left].find((side) => side.name === "gic" && side.picture);
    offer($("download-png"), decoded && url(decoded.picture), `${stem()}-decoded.png`);
    table();
  } else if (event.event === "value") {
    for (const side of ["left", "right"]) {
      if (state.sides[side].picture === event.picture) state.sides[side].metrics[event.metric] = event.value;
    }
    table();
  } else if (event.event === "advice") advise(event.text);
}

// The metrics that take longer, once the controls rest.
function judge() {
  judging = null;
  const names = about.metrics.map((metric) => metric.name);
  const open = ["left", "right"].map((side) => state.sides[side]).filter((side) => side.bytes && names.some((name) => !(name in side.metrics)));
  if (open.length) ask("/api/judge", { pictures: open.map((side) => side.picture) }, hear);
}

// ---- What is said ---------------------------------------------------------------------------------------------

const stem = () => state.name.replace(/\.[^.]*$/, "") || "picture";

function offer(link, href, name) {
  if (href) Object.assign(link, { href, download: name });
  else link.removeAttribute("href");
}

function table() {
  compareValues(about.metrics, state.sides.left, state.sides.right, state.file?.bytes);
}

function say(slider, text) {
  $(slider).setAttribute("aria-valuetext", text);
  $(`${slider}-text`).textContent = text;
}

// What of the controls decides on the whole file.
const wanted = () => [state.picture.id, $("size").value, $("progressive").checked].join();

function labels() {
  const { range, picture } = state;
  const part = $("size").value / $("size").max;
  if (range) {
    const exact = state.file?.of === wanted() ? state.file.whole : null;
    const bytes = exact ?? Math.round(range.smallest ** (1 - part) * range.largest ** part);
    say("size", `${exact ? "" : "about "}${bytesText(bytes)}, ${bitsText((8 * bytes) / (picture.width * picture.height))}`);
  }
  const r = $("realism").value / $("realism").max;
  const meaning = r === 0 ? ", closest to the original" : r === 1 ? ", most like a photograph" : "";
  say("realism", `r = ${r.toFixed(2)}${meaning}`);
  const received = $("received").value;
  const { file } = state;
  say("received", `${received} %` + (file?.first ? ` of ${bytesText(file.whole)}; the first picture takes ${bytesText(file.first)}` : ""));
}

function advise(text) {
  $("advice").textContent = text;
  $("advice").hidden = !text;
}

// ---- Playing: the file arrives --------------------------------------------------------------------------------

let playing = null; // a timer
const still = matchMedia("(prefers-reduced-motion: reduce)");

function stop() {
  clearTimeout(playing);
  playing = null;
  $("play").textContent = "Play";
  $("play").setAttribute("aria-pressed", "false");
}

function grow() {
  const now = Number($("received").value);
  if (now >= 100) {
    stop();
    wish();
    return;
  }
  $("received").value = Math.min(100, now + (still.matches ? 20 : 4));
  wish();
}

function play() {
  if (playing) return stop();
  const first = state.file?.first ? Math.ceil((100 * state.file.first) / state.file.whole) : 0;
  if (Number($("received").value) >= 100) $("received").value = first;
  playing = setTimeout(grow, 0);
  $("play").textContent = "Pause";
  $("play").setAttribute("aria-pressed", "true");
}

// ---- Controls -------------------------------------------------------------------------------------------------

function controls() {
  const sides = [
    ["original", "original"],
    ["gic", "gic"],
    ["gic-0", "gic, r = 0"],
    ["gic-1", "gic, r = 1"],
    ...about.codecs.map(({ name, label, missing }) => [name, label, missing]),
  ];
  for (const side of ["left", "right"]) {
    $(side).append(...sides.map(([value, text, missing]) => element("option", { value, textContent: text, disabled: Boolean(missing), title: missing ?? "" })));
    $(side).value = state[side];
    $(side).addEventListener("change", () => {
      state[side] = $(side).value;
      wish();
    });
  }
  $("swap").addEventListener("click", () => {
    [state.left, state.right] = [state.right, state.left];
    for (const side of ["left", "right"]) $(side).value = state[side];
    wish();
  });
  for (const slider of ["size", "realism"]) $(slider).addEventListener("input", wish);
  $("received").addEventListener("input", () => {
    stop();
    wish();
  });
  $("progressive").addEventListener("change", () => {
    stop();
    $("received").value = 100;
    $("receiving").hidden = !$("progressive").checked;
    wish();
  });
  $("play").addEventListener("click", play);
  $("file").addEventListener("change", () => {
    const [file] = $("file").files;
    if (file) takeFile(file);
    $("file").value = ""; // the same may be chosen again
  });
  $("whole").addEventListener("change", () => take(state.source, state.name));
  if (about.examples.length) {
    $("example").append(
      element("option", { value: "", textContent: "choose one", disabled: true }),
      ...about.examples.map((name, index) => element("option", { value: index, textContent: name })),
    );
    $("example").addEventListener("change", () => takeExample(Number($("example").value)));
    $("example-label").hidden = about.examples.length < 2;
  }
  for (const form of document.forms) form.addEventListener("submit", (event) => event.preventDefault());
}

function takeExample(example) {
  $("example").value = example;
  $("whole").checked = false;
  take({ example }, about.examples[example]);
}

addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
for (const end of ["dragleave", "drop"]) {
  addEventListener(end, (event) => {
    if (end === "drop" || !event.relatedTarget) document.body.classList.remove("over");
  });
}
addEventListener("drop", (event) => {
  event.preventDefault();
  takeFile(event.dataTransfer.files[0]);
});
addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (file) takeFile(file);
});

addEventListener("DOMContentLoaded", async () => {
  try {
    about = await (await fetch("/api/about")).json();
  } catch {
    fail("The program that serves this page does not answer: start gic demo again, then reload the page.");
    return;
  }
  controls();
  labels();
  advise(about.advice);
  document.body.dataset.ready = "true";
  if (about.examples.length) takeExample(0);
});
