// The moving parts of the report: the viewer of pictures and the curves; stage.js comes before. All text from the run
// goes through textContent, never through innerHTML, so that no name of a file is taken for markup.

const data = JSON.parse(document.getElementById("data").textContent);

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
  const tested = data.curves.map((curve, index) => index).filter((index) => data.curves[index].tested);
  const baselines = data.curves.map((curve, index) => index).filter((index) => !data.curves[index].tested);

  // What is chosen. `curve` and `point` name the file that the others are held against.
  const state = {
    image: 0,
    curve: tested[tested.length - 1],
    point: Math.floor((data.curves[tested[0]].points.length - 1) / 2),
    left: "original",
    right: "chosen",
  };
  const stage = makeStage(() => data.images[state.image]);
  const imageMetrics = data.metrics.filter((metric) => metric.kind === "image");

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
      nameSide(side, shown);
      const alt = `${image.key}, ${side}: ${shown.name}`;
      stage.show(side, { id: shown.picture, alt, url: pictureUrl, missing: "No picture was kept of this point." });
    }
    compareValues(imageMetrics, resolve("left"), resolve("right"), file.bytes);
    stage.place();
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
    input.addEventListener("change", () => {
      choose({ image: Number(input.value) });
      stage.centre();
    });
  }
  choice($("decodings"), "decoding", tested.map((index) => data.curves[index].name), tested.indexOf(state.curve), (index) =>
    choose({ curve: tested[index] }),
  );
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
    const button = element("button", { type: "button", className: "button" }, ...content);
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
