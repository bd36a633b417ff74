// Keys: "/" to the box, arrows between results, Enter opens (a link does that by itself), Escape closes or leaves the box.
import {byId} from "./elements.js";

const ARROWS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};

/** Listen. `toBox()` shows the box and puts the cursor into it. */
export function listenToKeys(toBox) {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const isTyping = event.target.closest("input:not([type=radio]):not([type=checkbox]), select, textarea") !== null;
    if (byId("large").open) {
      const step = {ArrowLeft: ".step.previous", ArrowRight: ".step.next"}[event.key];
      if (step && !isTyping) byId("large").querySelector(step)?.click();
    } else if (event.key === "/" && !isTyping) {
      event.preventDefault();
      toBox();
    } else if (event.key === "Escape" && isTyping) {
      event.preventDefault(); // browsers empty the box
      event.target.blur();
    } else if (event.key in ARROWS && !event.target.closest("input[type=radio], .scrolled") && (!isTyping || (event.key === "ArrowDown" && event.target.id === "q"))) {
      if (move(...ARROWS[event.key])) event.preventDefault();
    }
  });
}

/** Put the focus on the nearest result that way; on the first where none has it. Whether there is one. */
function move(x, y) {
  const results = [...document.querySelectorAll("main section:not([hidden]) a.result")];
  const from = results.indexOf(document.activeElement);
  if (from < 0) {
    if (results.length && y >= 0 && x >= 0) results[0].focus();
    return results.length > 0 && y >= 0 && x >= 0;
  }
  const target = x ? results[from + x] : nearest(results, results[from], y);
  target?.focus();
  target?.scrollIntoView({block: "nearest"});
  return target !== undefined;
}

/** The result of the next row, above or below, that is nearest to the side. */
function nearest(results, from, y) {
  const own = from.getBoundingClientRect();
  let best, least = Infinity;
  for (const each of results) {
    const place = each.getBoundingClientRect();
    const down = y * (place.top - own.top);
    const distance = down + 4 * Math.abs(place.left - own.left); // a row is nearer than a column
    if (down > own.height / 4 && distance < least) [best, least] = [each, distance];
  }
  return best;
}
