// One picture, large: its captions, its regions as boxes with confidence, and what can be asked with it.
import {ask} from "./api.js";
import {byId, count, drawing, element, notice, pathOf, picture} from "./elements.js";
import {addressOf, changed} from "./state.js";
import {follow} from "./results.js";

const SIZE = 1024; // pixels of the picture
let shown = null; // id

/** Show the picture that the state opens, or none. `context` = {state, info, go, neighbours}. */
export async function showLarge(context) {
  const dialog = byId("large");
  const id = context.state.open;
  if (!id) {
    shown = null;
    if (dialog.open) dialog.close();
    return;
  }
  if (shown === id && dialog.open) return showSteps(dialog, context); // the results around it may have come meanwhile
  shown = id;
  dialog.replaceChildren(...parts(id, null, context));
  if (!dialog.open) dialog.showModal();
  try {
    const item = await ask(`api/item/${pathOf(id)}`);
    if (shown === id) dialog.replaceChildren(...parts(id, item, context));
  } catch (error) {
    if (shown === id) dialog.querySelector(".about").replaceChildren(notice("bad", error.message));
  }
  if (shown === id) dialog.querySelector(".close").focus();
}

/** What leads to the results before and after. */
function steps({state, go, neighbours}) {
  const [before, after] = neighbours(state.open);
  const step = (target, word, sign) => target !== undefined &&
    element("button", {class: `step ${word}`, type: "button", "aria-label": `${word} result`, on: {click: () => go({...state, open: target}, true)}}, sign);
  return [step(before, "previous", "‹"), step(after, "next", "›")].filter(Boolean);
}

function showSteps(dialog, context) {
  for (const each of dialog.querySelectorAll(".step")) each.remove();
  dialog.querySelector(".stage").append(...steps(context));
}

function parts(id, item, context) {
  const {state, info, go} = context;
  const canFind = Boolean(info.models[state.models === "b" ? "b" : "a"]?.captions);
  const asking = (words, find) => {
    const target = changed(state, {from: "picture", image: id, own: "", find});
    return element("a", {class: "button", href: addressOf(target), on: {click: follow(go, target)}}, words);
  };
  return [
    element("div", {class: "large-head"},
      element("h2", {id: "large-name"}, id),
      element("button", {class: "close", type: "button", "aria-label": "Close", on: {click: () => byId("large").close()}}, "✕")),
    element("div", {class: "large-body"},
      element("div", {class: "stage"}, pictureWithRegions(id, item, info), ...steps(context)),
      element("div", {class: "about"},
        element("p", {class: "actions"}, canFind && asking("Find its captions", "captions"), asking("Find pictures like it", "images")),
        ...(item === null ? [notice("word", "…")] : [captionsOf(item, state, go), regionsOf(item)]))),
  ];
}

function pictureWithRegions(id, item, info) {
  const image = picture(id, SIZE, item?.captions[0]?.text ?? id, info.photos);
  const figure = element("figure", {class: "picture"}, image);
  image.addEventListener("load", () => { // as large as there is room, and not distorted
    figure.style.aspectRatio = image.naturalWidth / image.naturalHeight;
    figure.style.maxWidth = `calc(78vh * ${image.naturalWidth / image.naturalHeight})`;
  });
  if (item?.regions && info.photos) {
    // units of the drawing are hundredths of the picture's width and height
    const boxes = item.regions.map(({box: [left, top, right, bottom]}, number) =>
      drawing("rect", {x: 100 * left, y: 100 * top, width: 100 * (right - left), height: 100 * (bottom - top), "data-region": number}));
    figure.append(drawing("svg", {class: "boxes", viewBox: "0 0 100 100", preserveAspectRatio: "none", "aria-hidden": "true"}, ...boxes));
    for (const [number, {box, confidence}] of item.regions.entries()) {
      const label = element("span", {class: "confidence", "aria-hidden": "true", "data-region": number}, confidence.toFixed(2));
      label.style.left = `${100 * box[0]}%`;
      label.style.top = `${100 * box[1]}%`;
      figure.append(label);
    }
  }
  return figure;
}

function captionsOf(item, state, go) {
  if (!item.captions.length) return element("p", {class: "faint"}, "No captions are known.");
  const line = ({text, language}) => {
    const target = changed(state, {from: "text", q: text, image: "", own: "", find: "captions"});
    return element("li", {lang: language || null}, element("a", {href: addressOf(target), title: "find pictures for these words", on: {click: follow(go, target)}}, text));
  };
  return element("section", {}, element("h3", {}, "Captions"), element("ul", {class: "its-captions"}, ...item.captions.map(line)));
}

function regionsOf(item) {
  if (item.regions === null) return null;
  const dialog = byId("large");
  const mark = (number) => {
    for (const each of dialog.querySelectorAll("[data-region]")) each.classList.toggle("marked", each.dataset.region === String(number));
    dialog.querySelector("figure").classList.toggle("one-region", number !== null);
  };
  const toggle = (event) => dialog.querySelector("figure").classList.toggle("no-regions", !event.target.checked);
  const line = ({confidence}, number) => {
    const meter = element("span", {class: "meter"}, element("span", {}));
    meter.firstChild.style.width = `${100 * confidence}%`;
    const on = {pointerenter: () => mark(number), pointerleave: () => mark(null), focus: () => mark(number), blur: () => mark(null)};
    return element("li", {}, element("button", {type: "button", on}, `region ${number + 1}`, meter, element("span", {class: "value"}, confidence.toFixed(2))));
  };
  return element("section", {},
    element("h3", {}, count(item.regions.length, "region", "regions"), element("label", {class: "toggle"}, element("input", {type: "checkbox", checked: true, on: {change: toggle}}), " drawn")),
    element("ol", {class: "its-regions"}, ...item.regions.map(line)));
}
