// What the pages of gic have in common: a stage with two pictures under one divider, with zoom and pan, the table of
// their values, and small tools. Names go through textContent, never through innerHTML, so that none is taken for markup.
"use strict";

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

// The stage of stage.html and sides.html. `natural` tells width and height of the pictures, in their own pixels.
function makeStage(natural) {
  const stage = $("stage");
  const divider = $("divider");
  const layers = { left: $("layer-left"), right: $("layer-right") };
  const state = {
    split: 0.5, // of the stage's width
    zoom: 0, // screen pixels for a pixel of the picture; 0 fits the picture into the stage
    x: 0, // of the picture's centre from the stage's, in screen pixels
    y: 0,
  };

  // ---- Where the pictures lie

  const zooms = [0, 1, 2, 4, 8];
  const size = () => ({ width: stage.clientWidth, height: stage.clientHeight });

  function scale() {
    const { width, height } = size();
    const image = natural();
    return state.zoom || Math.min(1, width / image.width, height / image.height);
  }

  function place() {
    const image = natural();
    // As high as the fitted picture, within what a screen shows: beside the controls, or with some of them below.
    const most = window.innerHeight * (window.innerWidth > 900 ? 0.8 : 0.6);
    const fitted = Math.min(1, stage.clientWidth / image.width) * image.height;
    stage.style.height = `${Math.round(Math.max(160, Math.min(fitted, most)))}px`;
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
    stage.style.setProperty("--split", `${100 * state.split}%`);
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

  // Put a picture on a side. `id` names it, or is null where there is none; then `missing` says why. True once it is
  // there, false where something else was chosen meanwhile.
  async function show(side, { id, alt, url, missing }) {
    const layer = layers[side];
    const wanted = `${id} ${id == null ? missing : ""}`;
    if (layer.dataset.wanted === wanted) return layer.dataset.shown === wanted;
    layer.dataset.wanted = wanted;
    let content;
    try {
      if (id == null) throw new Error("no picture");
      content = element("img", { alt, draggable: false, src: url(id) });
      await content.decode(); // the old picture stays until the new one is ready
    } catch {
      content = element("p", { textContent: id == null ? missing : "This browser cannot show this file." });
    }
    if (layer.dataset.wanted !== wanted) return false;
    layer.replaceChildren(content);
    layer.dataset.shown = wanted;
    place();
    return true;
  }

  function centre() {
    Object.assign(state, { x: 0, y: 0 });
    place();
  }

  // ---- Keys, pointer and wheel

  choice($("zooms"), "zoom", zooms.map((level) => (level ? `${level}×` : "fit")), 0, (index) => zoom(zooms[index]));
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

  new ResizeObserver(place).observe(stage.closest(".viewer"));
  return { place, show, centre };
}

// What a side is: its name over the picture and over its column.
function nameSide(side, shown) {
  tagSide(side, shown);
  headSide(side, shown);
}

function tagSide(side, shown) {
  $(`tag-${side}`).textContent = shown.bpp == null ? shown.name : `${shown.name}, ${bitsText(shown.bpp)}`;
}

function headSide(side, shown) {
  const setting = element("span", { className: "setting", textContent: shown.setting ?? "" });
  $(`name-${side}`).replaceChildren(...(shown.setting ? [`${shown.name} `, setting] : [shown.name]));
}

// Values of both sides, the better one marked; sizes also in per cent more or less than that of the chosen file, but for a
// side that is `own`.
function compareValues(metrics, left, right, size) {
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
  const part = ({ bytes, own }) => {
    const percent = 100 * (bytes / size - 1);
    if (own || !size || bytes === size) return "";
    return ` (${percent > 0 ? "+" : "−"}${Number(Math.abs(percent).toFixed(1))} %)`;
  };
  add("bytes", (side) => (side.bytes == null ? "–" : side.bytes.toLocaleString("en") + part(side)));
  add("bits per pixel", number("bpp", (value) => value.toFixed(4)));
  for (const metric of metrics) {
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
