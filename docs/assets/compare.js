// Turns the figures of each .compare into one picture with a divider between two of them. Without this script they
// stand side by side. The divider is a range input, so that the keyboard and screen readers know it.
"use strict";
for (const root of document.querySelectorAll(".compare")) {
  const figures = [...root.querySelectorAll("figure")];
  const names = figures.map((figure) => figure.querySelector("figcaption").textContent.trim());
  const make = (tag, attributes, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };
  const layers = ["left", "right"].map((side) => make("img", { class: side, alt: "" }));
  const range = make("input", { type: "range", min: 0, max: 100, value: 50, "aria-label": "Divider between the pictures" });
  const stage = make("div", { class: "stage" }, ...layers.slice().reverse(), make("div", { class: "divider" }), range);
  const menus = layers.map((layer, side) => {
    const menu = make("select", { "aria-label": `Picture on the ${layer.className}` });
    names.forEach((name, i) => menu.append(make("option", { value: i }, name)));
    menu.value = side ? Number(root.dataset.right ?? 1) : Number(root.dataset.left ?? 0);
    return menu;
  });
  const show = () => {
    stage.style.setProperty("--at", `${range.value}%`);
    layers.forEach((layer, side) => {
      const from = figures[menus[side].value].querySelector("img");
      if (layer.src !== from.src) layer.src = from.src;
      layer.alt = names[menus[side].value];
    });
    range.setAttribute("aria-valuetext", `${range.value} % ${layers[0].alt}, the rest ${layers[1].alt}`);
  };
  const size = figures[0].querySelector("img");
  stage.style.aspectRatio = `${size.getAttribute("width")} / ${size.getAttribute("height")}`;
  root.replaceChildren(stage, make("div", { class: "menus" }, ...menus));
  for (const control of [range, ...menus]) control.addEventListener("input", show);
  show();
}
