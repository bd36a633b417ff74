// Elements made by hand: no template language, no inline style, so that the Content-Security-Policy can forbid both.

/** An element. Properties: `class`, `on` = {event: handler}, `data` = {name: value}; true and false set and leave out an attribute. */
export function element(tag, properties = {}, ...children) {
  return fill(document.createElement(tag), properties, children);
}

/** The same for drawings. */
export function drawing(tag, properties = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), properties, children);
}

function fill(made, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (name === "on") for (const [event, handler] of Object.entries(value)) made.addEventListener(event, handler);
    else if (name === "data") Object.assign(made.dataset, value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

/** The element of an id of index.html. */
export const byId = (id) => document.getElementById(id);

/** Put other children there. The focus stays on what has the same `data-focus` as what had it, so that keys go on where they were. */
export function redraw(section, ...children) {
  const name = section.contains(document.activeElement) && document.activeElement.dataset.focus;
  section.replaceChildren(...children);
  if (name) section.querySelector(`[data-focus="${CSS.escape(name)}"]`)?.focus({preventScroll: true});
}

/** A number of milliseconds, with as many digits as can be told apart. */
export const milliseconds = (value) => (value < 10 ? value.toFixed(1) : Math.round(value).toLocaleString("en"));

/** A score; the digits of search.py's. */
export const score = (value) => value.toFixed(4);

/** The name of a folder, which may break behind a slash. */
export const folder = (path) => path.split("/").flatMap((part, place) => (place ? ["/", document.createElement("wbr"), part] : [part]));

export const count = (number, one, many) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;

/** Where a picture of the gallery is, with no side longer than `size` pixels. */
export function imageAddress(id, size) {
  return `api/image/${pathOf(id)}?size=${size}`;
}

/** An id as part of a path; it may hold slashes. */
export const pathOf = (id) => id.split("/").map(encodeURIComponent).join("/");

/** A picture of the gallery, or a word where there is no file of it. */
export function picture(id, size, alt, hasPhotos) {
  const absent = () => element("span", {class: "no-picture"}, "no picture file");
  if (!hasPhotos) return absent();
  const image = element("img", {src: imageAddress(id, size), alt, loading: "lazy", decoding: "async", draggable: "false"});
  image.addEventListener("error", () => image.replaceWith(absent()));
  return image;
}

/** A line for the user: "bad" for what failed, "word" for what is worth knowing. */
export function notice(kind, ...children) {
  return element("p", {class: `notice ${kind}`}, ...children);
}
