// The moving parts of the report: the viewer of pictures and the curves. All text from the run goes through
// textContent, never through innerHTML, so that no name of a file is taken for markup.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);

const bitsText = (value) => `${value.toFixed(value < 0.1 ? 4 : 3)} bpp`;
const bytesText = (value) => `${value.toLocaleString("en")} bytes`;
const valueText = (value, digits = 4) => (value == null ? "–" : value.toPrecision(digits).replace("-", "−"));
const arrow = (metric) => (metric.higher ? "↑" : "↓");

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// A row of radio buttons that looks like one control; `change` is told the number of the one that is chosen.
function choice(container, name, labels, chosen, change) {
  container.replaceChildren(
    ...labels.map((label, index) => {
      const input = element("input", { type: "radio", name, value: index, checked: index === chosen });
      input.addEventListener("change", () => change(index));
      return element("label", {}, input, element("span", { textContent: label }));
    }),
  );
}

// ---- Pictures -------------------------------------------------------------------------------------------------

const urls = new Map();

// Embedded pictures wait as base64 text; a blob is made of one when it is first shown.
function pictureUrl(id) {
  if (!urls.has(id)) {
    const block = $(`picture-${id}`);
    const bytes = Uint8Array.from(atob(block.textContent), (letter) => letter.charCodeAt(0));
    urls.set(id, URL.createObjectURL(new Blob([bytes], { type: block.dataset.mime })));
    block.remove();
  }
  return urls.get(id);
}

function viewer() {
  const stage = $("stage");
  const divider = $("divider");
  const layers = { left: $("layer-left"), right: $("layer-right") };
  const tested = data.curves.map((curve, index) => index).filter((index) => data.curves[index].tested);
  const baselines = data.curves.map((curve, index) => index).filter((index) => !data.curves[index].tested);

  // What is chosen. `curve` and `point` name the file that the others are held against.
  const state = {
    image: 0,
    curve: tested[tested.length - 1],
    point: Math.floor((data.curves[tested[0]].points.length - 1) / 2),
    left: "original",
    right: "chosen",
    split: 0.5, // of the stage's width
    zoom: 0, // screen pixels for a pixel of the picture; 0 fits the picture into the stage
    x: 0, // of the picture's centre from the stage's, in screen pixels
    y: 0,
  };

  // What a side shows: its name, the picture's number, and its measurements (none for the original).
  function resolve(side) {
    const image = data.images[state.image];
    const pick = state[side];
    if (pick === "original") return { name: "original", picture: image.original, metrics: image.originals };
    let curve = state.curve;
    if (pick === "closest") curve = image.closest[state.curve][state.point];
    else if (pick !== "chosen") curve = Number(pick);
    const point = image.near[state.curve][state.point][curve];
    const name = data.curves[curve].name;
    if (point == null) return { name, picture: null, metrics: {} };
    return { name, setting: data.curves[curve].points[point].setting, ...image.files[curve][point] };
  }

  // ---- Where the pictures lie

  const zooms = [0, 1, 2, 4, 8];
  const size = () => ({ width: stage.clientWidth, height: stage.clientHeight });

  function scale() {
    const { width, height } = size();
    const image = data.images[state.image];
    return state.zoom || Math.min(1, width / image.width, height / image.height);
  }

  function place() {
    const image = data.images[state.image];
    // As high as the fitted picture, within what a screen shows.
    const fitted = Math.min(1, stage.clientWidth / image.width) * image.height;
    stage.style.height = `${Math.round(Math.max(160, Math.min(fitted, window.innerHeight * 0.8)))}px`;
    const { width, height } = size();
    const s = scale();
    const w = image.width * s;
    const h = image.height * s;
    const room = { x: Math.max(0, (w - width) / 2), y: Math.max(0, (h - height) / 2) };
    state.x = Math.min(room.x, Math.max(-room.x, state.x));
    state.y = Math.min(room.y, Math.max(-room.y, state.y));
    const style = {
      width: `${w}px`,
      height: `${h}px`,
      left: `${Math.round((width - w) / 2 + state.x)}px`,
      top: `${Math.round((height - h) / 2 + state.y)}px`,
    };
    for (const img of stage.querySelectorAll("img")) Object.assign(img.style, style);
    stage.classList.toggle("pixels", s >= 1);
    stage.classList.toggle("movable", room.x > 0 || room.y > 0);
    layers.left.style.clipPath = `inset(0 ${100 * (1 - state.split)}% 0 0)`;
    divider.style.left = `${100 * state.split}%`;
    const percent = Math.round(100 * state.split);
    divider.setAttribute("aria-valuenow", percent);
    divider.setAttribute("aria-valuetext", `${percent} % left, ${100 - percent} % right`);
  }

  function split(value) {
    state.split = Math.min(1, Math.max(0, value));
    place();
  }

  function move(x, y) {
    state.x += x;
    state.y += y;
    place();
  }

  // Change the zoom so that what lies under (x, y), from the stage's centre, stays there.
  function zoom(value, x = 0, y = 0) {
    const before = scale();
    state.zoom = value;
    const ratio = scale() / before;
    state.x = x - (x - state.x) * ratio;
    state.y = y - (y - state.y) * ratio;
    $("zooms").querySelectorAll("input")[zooms.indexOf(value)].checked = true;
    place();
  }

  function zoomBy(direction, x, y) {
    const now = scale();
    const larger = zooms.filter((level) => level > now);
    const smaller = zooms.filter((level) => level && level < now);
    if (direction > 0) {
      if (larger.length) zoom(larger[0], x, y);
    } else if (state.zoom) {
      zoom(smaller.length ? smaller[smaller.length - 1] : 0, x, y);
    }
  }

  // ---- What the pictures are

  async function show(side, shown) {
    const layer = layers[side];
    const wanted = String(shown.picture);
    if (layer.dataset.wanted === wanted) return;
    layer.dataset.wanted = wanted;
    let content;
    try {
      if (shown.picture == null) throw new Error("no picture");
      content = element("img", { alt: `${data.images[state.image].key}, ${side}: ${shown.name}`, draggable: false, src: pictureUrl(shown.picture) });
      await content.decode(); // the old picture stays until the new one is ready
    } catch {
      const reason = shown.picture == null ? "No picture was kept of this point." : "This browser cannot show this file.";
      content = element("p", { textContent: reason });
    }
    if (layer.dataset.wanted !== wanted) return; // something else was chosen meanwhile
    layer.replaceChildren(content);
    layer.dataset.shown = wanted;
    place();
  }

  // Values of both sides, the better one marked; sizes also as parts of that of the chosen file.
  function table(left, right, size) {
    const rows = [];
    const add = (label, cell, better = () => 0) => {
      const wins = better();
      rows.push(
        element(
          "tr",
          {},
          element("th", { scope: "row", textContent: label }),
          element("td", { textContent: cell(left), className: wins < 0 ? "better" : "" }),
          element("td", { textContent: cell(right), className: wins > 0 ? "better" : "" }),
        ),
      );
    };
    const number = (key, text) => (side) => (side[key] == null ? "–" : text(side[key]));
    const part = (bytes) => {
      const percent = 100 * (bytes / size - 1);
      return bytes === size ? "" : ` (${percent > 0 ? "+" : "−"}${Math.abs(percent).toFixed(0)} %)`;
    };
    add("bytes", number("bytes", (value) => value.toLocaleString("en") + part(value)));
    add("bits per pixel", number("bpp", (value) => value.toFixed(4)));
    for (const metric of data.metrics.filter((one) => one.kind === "image")) {
      const [a, b] = [left.metrics[metric.name], right.metrics[metric.name]];
      const sign = metric.higher ? 1 : -1;
      add(
        `${metric.label} ${arrow(metric)}`,
        (side) => valueText(side.metrics[metric.name]),
        () => (a == null || b == null ? 0 : Math.sign(sign * (b - a))),
      );
    }
    add("encode, s", number("encode", (value) => valueText(value, 3)));
    add("decode, s", number("decode", (value) => valueText(value, 3)));
    $("comparison").tBodies[0].replaceChildren(...rows);
  }

  function refresh() {
    const image = data.images[state.image];
    const curve = data.curves[state.curve];
    const file = image.files[state.curve][state.point];
    const text = `${curve.points[state.point].setting}: ${bytesText(file.bytes)}, ${bitsText(file.bpp)}`;
    $("rate").value = state.point;
    $("rate").setAttribute("aria-valuetext", text);
    $("rate-text").textContent = text;
    for (const side of ["left", "right"]) {
      const shown = resolve(side);
      const select = $(side);
      select.querySelector("[value=chosen]").textContent = `chosen: ${curve.name}`;
      select.value = state[side];
      $(`tag-${side}`).textContent = shown.bpp == null ? shown.name : `${shown.name}, ${bitsText(shown.bpp)}`;
      $(`name-${side}`).textContent = shown.setting ? `${shown.name} ${shown.setting}` : shown.name;
      show(side, shown);
    }
    table(resolve("left"), resolve("right"), file.bytes);
    place();
  }

  function choose(changes) {
    Object.assign(state, changes);
    state.point = Math.min(state.point, data.curves[state.curve].points.length - 1);
    $("rate").max = data.curves[state.curve].points.length - 1;
    refresh();
  }

  // ---- Controls

  for (const input of document.getElementsByName("image")) {
    input.checked = Number(input.value) === state.image;
    input.addEventListener("change", () => choose({ image: Number(input.value), x: 0, y: 0 }));
  }
  choice($("decodings"), "decoding", tested.map((index) => data.curves[index].name), tested.indexOf(state.curve), (index) =>
    choose({ curve: tested[index] }),
  );
  choice($("zooms"), "zoom", zooms.map((level) => (level ? `${level}×` : "fit")), 0, (index) => zoom(zooms[index]));
  $("rate").addEventListener("input", () => choose({ point: Number($("rate").value) }));
  for (const side of ["left", "right"]) {
    const option = (value, text) => element("option", { value, textContent: text });
    $(side).append(option("original", "original"), option("chosen", ""));
    if (baselines.length) $(side).append(option("closest", "baseline nearest in size"));
    if (tested.length > 1) $(side).append(...tested.map((index) => option(index, data.curves[index].name)));
    $(side).append(...baselines.map((index) => option(index, data.curves[index].name)));
    $(side).addEventListener("change", () => choose({ [side]: $(side).value }));
  }
  $("swap").addEventListener("click", () => choose({ left: state.right, right: state.left }));

  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  stage.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = steps[event.key];
    if (event.key === "+" || event.key === "=") zoomBy(1);
    else if (event.key === "-") zoomBy(-1);
    else if (event.target === divider) {
      if (event.key === "Home") split(0);
      else if (event.key === "End") split(1);
      else if (step && step[0]) split(state.split + step[0] * (event.shiftKey ? 0.1 : 0.02));
      else return;
    } else if (step && stage.classList.contains("movable")) move(-60 * step[0], -60 * step[1]);
    else return;
    event.preventDefault();
  });

  // Dragging moves the divider, or the picture where it is larger than the stage and was not taken at the divider.
  let drag = null;
  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    drag = { panning: event.target !== divider && stage.classList.contains("movable"), x: event.clientX, y: event.clientY };
    stage.setPointerCapture(event.pointerId);
    (drag.panning ? stage : divider).focus({ preventScroll: true, focusVisible: false });
    if (!drag.panning) split((event.clientX - stage.getBoundingClientRect().left) / stage.clientWidth);
    event.preventDefault();
  });
  stage.addEventListener("pointermove", (event) => {
    if (!drag) return;
    if (drag.panning) move(event.clientX - drag.x, event.clientY - drag.y);
    else split((event.clientX - stage.getBoundingClientRect().left) / stage.clientWidth);
    Object.assign(drag, { x: event.clientX, y: event.clientY });
  });
  for (const end of ["pointerup", "pointercancel"]) stage.addEventListener(end, () => (drag = null));

  // The wheel belongs to the page until the picture was clicked. A pinch on a touchpad comes with ctrlKey set.
  let turned = 0;
  stage.addEventListener(
    "wheel",
    (event) => {
      if (!event.ctrlKey && !stage.contains(document.activeElement)) return;
      event.preventDefault();
      turned += event.deltaMode ? 60 * Math.sign(event.deltaY) : event.deltaY * (event.ctrlKey ? 4 : 1);
      if (Math.abs(turned) < 50) return;
      const box = stage.getBoundingClientRect();
      zoomBy(-turned, event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2);
      turned = 0;
    },
    { passive: false },
  );

  new ResizeObserver(place).observe(stage.parentElement);
  choose({});
}

// ---- Curves ---------------------------------------------------------------------------------------------------

function charts() {
  const SHAPES = {
    circle: "M2.5 0A2.5 2.5 0 1 1-2.5 0A2.5 2.5 0 1 1 2.5 0",
    square: "M-2.3-2.3H2.3V2.3H-2.3Z",
    diamond: "M0-3.4 3.4 0 0 3.4-3.4 0Z",
    "triangle-up": "M0-3.2 3.2 2.6H-3.2Z",
    "triangle-down": "M0 3.2 3.2-2.6H-3.2Z",
  };
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  // Plotly takes text for a small set of HTML tags.
  const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  // Measured curves are filled and drawn through, published ones hollow and dashed.
  const curves = [...data.curves, ...data.published.map((curve) => ({ ...curve, published: true }))].map((curve) => ({
    ...curve,
    visible: true,
  }));

  const own = curves.filter((curve) => !curve.published);
  const published = curves.filter((curve) => curve.published);

  function draw(plot) {
    const metric = plot.metric;
    const ink = colour("--ink");
    const unit = metric.unit ? ` ${metric.unit}` : "";
    const traces = [...published, ...own].map((curve) => {
      const points = curve.points.filter((point) => point.values[metric.name] != null);
      const text = points.map((point) =>
        [
          `<b>${plain(curve.name)}</b>`,
          ...(point.setting ? [plain(point.setting)] : []),
          bitsText(point.values[metric.name][0]),
          `${plain(metric.label)} ${valueText(point.values[metric.name][1])}${plain(unit)}`,
          ...(curve.published ? ["published"] : []),
        ].join("<br>"),
      );
      return {
        type: "scatter",
        mode: "lines+markers",
        name: plain(curve.name),
        x: points.map((point) => point.values[metric.name][0]),
        y: points.map((point) => point.values[metric.name][1]),
        text,
        hoverinfo: "text",
        visible: curve.visible,
        line: { color: curve.colour, width: curve.tested ? 3 : 1.5, dash: curve.published ? "dash" : "solid" },
        marker: { color: curve.colour, size: 8, symbol: curve.shape + (curve.published ? "-open" : "") },
      };
    });
    const logarithmic = $("logarithmic").checked;
    const axis = { gridcolor: colour("--line"), linecolor: colour("--line"), zeroline: false, automargin: true };
    const layout = {
      margin: { l: 8, r: 12, t: 32, b: 8 },
      paper_bgcolor: "transparent",
      plot_bgcolor: "transparent",
      font: { color: ink, family: "system-ui, sans-serif", size: 12 },
      showlegend: false,
      modebar: { bgcolor: "transparent", color: colour("--soft"), activecolor: colour("--accent") },
      hovermode: "closest",
      hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--soft"), font: { color: ink, size: 13 }, align: "left" },
      dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom", // a finger scrolls the page
      uirevision: String(logarithmic), // keeps the enlarged part when a curve is hidden
      xaxis: {
        ...axis,
        title: { text: "bits per pixel", font: { size: 12 } },
        type: logarithmic ? "log" : "linear",
        ...(logarithmic ? { dtick: "D2" } : { rangemode: "tozero" }),
      },
      yaxis: axis,
    };
    const config = {
      responsive: true,
      displaylogo: false,
      modeBarButtons: [["toImage", "resetScale2d"]],
      toImageButtonOptions: { format: "svg", filename: `gic-${metric.name}` },
    };
    plot.drawn = true;
    Plotly.react(plot, traces, layout, config);
  }

  const plots = data.metrics
    .filter((metric) => curves.some((curve) => curve.points.some((point) => point.values[metric.name] != null)))
    .map((metric) => {
      const plot = Object.assign(element("div", { className: "plot" }), { metric });
      const better = metric.higher ? "higher is better" : "lower is better";
      const about = element("small", { textContent: [metric.unit, `${arrow(metric)} ${better}`, metric.over].filter(Boolean).join(", ") });
      const caption = element("figcaption", { textContent: metric.label, title: metric.identity }, about);
      $("charts").append(element("figure", { className: "chart" }, caption, plot));
      return plot;
    });
  const redraw = () => plots.filter((plot) => plot.drawn).forEach(draw);
  const watcher = new IntersectionObserver(
    (entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        watcher.unobserve(target);
        draw(target);
      }
    },
    { rootMargin: "300px" },
  );
  plots.forEach((plot) => watcher.observe(plot));

  const updates = [];
  // A button for each curve, and one for all that were published where there are several.
  function toggle(some, ...content) {
    const button = element("button", { type: "button" }, ...content);
    button.addEventListener("click", () => {
      const visible = !some.some((curve) => curve.visible);
      for (const curve of some) curve.visible = visible;
      for (const update of updates) update();
      redraw();
    });
    updates.push(() => button.setAttribute("aria-pressed", String(some.some((curve) => curve.visible))));
    return button;
  }
  $("legend").append(...own.map((curve) => toggle([curve], sample(curve), curve.name)));
  if (published.length) {
    $("published").append(
      published.length > 1 ? toggle(published, "all published") : "published:",
      ...published.map((curve) => Object.assign(toggle([curve], sample(curve), curve.name), { title: curve.source })),
    );
  }
  for (const update of updates) update();
  $("logarithmic").addEventListener("change", redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

  // A piece of the curve for its button.
  function sample(curve) {
    const svg = (tag, attributes) => {
      const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
      for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
      return made;
    };
    const stroke = curve.colour;
    const root = svg("svg", { width: 26, height: 12, viewBox: "-13 -6 26 12", "aria-hidden": "true" });
    const line = { d: "M-13 0H13", stroke, "stroke-width": 2, ...(curve.published ? { "stroke-dasharray": "4 3" } : {}) };
    const fill = curve.published ? "var(--card)" : stroke;
    root.append(svg("path", line), svg("path", { d: SHAPES[curve.shape], fill, stroke, "stroke-width": 1.5 }));
    return root;
  }
}

document.addEventListener("DOMContentLoaded", () => {
  if (data.images.length) viewer();
  charts();
});
