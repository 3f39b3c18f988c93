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
  sized: false, // whether the size was chosen by hand; until then the program chooses it
  file: null, // the newest
  shown: null, // that of which both sides are
  sides: { left: { name: "", metrics: {} }, right: { name: "", metrics: {} } },
};
let about = null;
let stage = null;

// ---- Asking ---------------------------------------------------------------------------------------------------

let number = 0; // of the newest request; answers to others are dropped
let asking = null; // the AbortController of the request that is not answered yet

let doing = ""; // what is under way
let begun = 0; // when it was asked for

function busy(text) {
  $("status").dataset.state = text == null ? "idle" : "busy";
  if (text == null) return; // the last stays while it fades
  doing = text;
  tick();
}

function tick() {
  if ($("status").dataset.state !== "busy") return;
  const seconds = Math.floor((performance.now() - begun) / 1000);
  $("status").textContent = seconds ? `${doing}, ${seconds} s` : doing;
}

setInterval(tick, 250);

// Send a request, and hand each event of its answer to `take` while it is the newest; true if it came to its end.
async function ask(path, body, take, what = "") {
  asking?.abort();
  const mine = ++number;
  asking = new AbortController();
  begun = performance.now();
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

let taking = null; // stands for the picture that is on its way; wishes wait for it, so that none takes its turn

async function take(source, name) {
  stop();
  fail("");
  if (source.file && source.file.size > about.max_bytes) {
    fail(`${name} has ${bytesText(source.file.size)}; at most ${bytesText(about.max_bytes)} are taken.`);
    return;
  }
  rest();
  let taken = null;
  const hear = (event) => (taken = event);
  const mine = (taking = {});
  const whole = $("whole").checked;
  const ended = source.file
    ? await ask(`/api/pictures?whole=${Number(whole)}`, source.file, hear, `${name}: `)
    : await ask("/api/examples", { example: source.example, whole }, hear, `${name}: `);
  if (taking !== mine) return; // a newer one is
  taking = null;
  if (!ended || !taken) return;
  rest();
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
  clearTimeout(playing); // it goes on when this is answered
  again = judging = null;
  if (!state.picture || taking) return;
  const left = asking && sent ? sent + PATIENCE - performance.now() : 0;
  if (left > 0) again = setTimeout(wish, left);
  else send();
}

// The same, without waiting.
function wishNow() {
  sent = 0;
  wish();
}

// Nothing is wished for any more, and nothing plays.
function rest() {
  stop();
  clearTimeout(again);
  clearTimeout(judging);
  again = judging = null;
}

async function send() {
  sent = performance.now();
  let of = wanted();
  const answer = { file: null, sides: {}, shown: [] };
  const asked = ask(
    "/api/compare",
    {
      picture: state.picture.id,
      size: state.sized ? $("size").value / $("size").max : null,
      realism: $("realism").value / $("realism").max,
      progressive: $("progressive").checked,
      received: $("progressive").checked ? $("received").value / 100 : 1,
      left: state.left,
      right: state.right,
      playing: Boolean(playing),
    },
    (event) => {
      if (event.event === "range" && !state.sized) {
        $("size").value = event.size * $("size").max;
        of = wanted();
      }
      hear({ ...event, of }, answer);
    },
  );
  const mine = number;
  const ended = await asked;
  if (mine !== number) return; // what is asked meanwhile goes on
  sent = 0;
  if (ended && playing) await Promise.all(answer.shown); // each step is seen
  if (mine !== number) return;
  if (again) wish();
  else if (ended) {
    if (playing) playing = setTimeout(grow, 60);
    else judging = setTimeout(judge, 400 + (state.picture.width * state.picture.height) / 2500);
  }
}

const url = (id) => `/pictures/${id}.png`;

// A new picture: nothing of the one before is left.
function clear() {
  state.file = state.shown = null;
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

// An event of an answer. Pictures are shown as they come; the table waits until both sides are of one file.
function hear(event, answer) {
  if (event.event === "range") {
    state.range = event;
    labels();
  } else if (event.event === "file") {
    state.file = answer.file = event;
    labels();
    offer($("download-gic"), event.id && `/files/${event.id}.gic`, `${stem()}.gic`);
  } else if (event.event === "side") {
    fail("");
    const { side, picture: id, missing } = event;
    const shown = stage.show(side, { id, alt: `${state.name}, ${side}: ${event.name}`, url, missing });
    answer.shown.push(shown.then((there) => there && tagSide(side, event)));
    answer.sides[side] = { ...event, own: event.name === "gic" };
    if (!answer.sides.left || !answer.sides.right) return;
    state.shown = answer.file;
    state.sides = answer.sides;
    for (const each of ["left", "right"]) headSide(each, state.sides[each]);
    const decoded = [state.sides.right, state.sides.left].find((each) => each.own && each.picture);
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
  compareValues(about.metrics, state.sides.left, state.sides.right, state.shown?.id && state.shown.bytes);
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
    const bits = (8 * bytes) / (picture.width * picture.height);
    say("size", `${exact ? "" : "about "}${bytesText(bytes)}, ${bits.toFixed(bits < 0.1 ? 4 : 3)} bits per pixel (bpp)`);
  } else say("size", "…");
  const r = $("realism").value / $("realism").max;
  say("realism", `r = ${r.toFixed(2)}`);
  const received = $("received").value;
  const { file } = state;
  say("received", `${received} %` + (file?.first ? ` of ${bytesText(file.whole)}; the first picture takes ${bytesText(file.first)}` : ""));
}

function advise(text) {
  $("advice").textContent = text;
  $("more").hidden = !text;
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
  if (playing) {
    stop();
    return wish(); // other codecs come at the size of what has arrived
  }
  if (taking) return;
  const first = state.file?.first ? Math.ceil((100 * state.file.first) / state.file.whole) : 0;
  if (Number($("received").value) >= 100) $("received").value = first;
  playing = setTimeout(grow, 0);
  $("play").textContent = "Pause";
  $("play").setAttribute("aria-pressed", "true");
}

// ---- Controls -------------------------------------------------------------------------------------------------

function controls() {
  $("size").max = about.steps;
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
      wishNow();
    });
  }
  $("swap").addEventListener("click", () => {
    [state.left, state.right] = [state.right, state.left];
    for (const side of ["left", "right"]) $(side).value = state[side];
    wishNow();
  });
  $("size").addEventListener("input", () => {
    state.sized = true;
    wish();
  });
  $("realism").addEventListener("input", wish);
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
