// What a search took: this one, and median and 95th percentile of the last 20 of the same kind: checkpoint, backend, re-ranked or not.
import {count, element, milliseconds} from "./elements.js";

const LAST = 20;
const STAGES = [["encode", "encode"], ["search", "search"], ["rerank", "re-rank"]];
const taken = new Map(); // what was searched with what → milliseconds of the last searches

/** Take note of an answer. */
export function addTiming(answer, isPhoto) {
  const key = keyOf(answer, isPhoto);
  const times = taken.get(key) ?? [];
  taken.set(key, [...times, answer.milliseconds].slice(-LAST));
}

const keyOf = (answer, isPhoto) => [answer.model, answer.find, answer.backend, answer.rerank > 0, answer.queries.length, isPhoto].join();

/** The value below which a share of the values are; between two of them in proportion, as numpy's percentile. */
export function quantile(values, share) {
  const sorted = [...values].sort((a, b) => a - b);
  const place = (sorted.length - 1) * share;
  const below = Math.floor(place);
  return sorted[below] + (place - below) * (sorted[Math.min(below + 1, sorted.length - 1)] - sorted[below]);
}

/** The bar of an answer with its table, and a list of the backends to choose from. */
export function timingsOf(answer, {name, backends, isPhoto, chooseBackend}) {
  const now = answer.milliseconds;
  const before = taken.get(keyOf(answer, isPhoto)) ?? [now];
  const total = STAGES.reduce((sum, [stage]) => sum + now[stage], 0);
  const bar = element("div", {class: "bar", role: "img", "aria-label": STAGES.map(([stage, word]) => `${word} ${milliseconds(now[stage])} ms`).join(", ")});
  for (const [stage] of STAGES) {
    const part = element("span", {class: stage});
    part.style.flexGrow = total ? now[stage] / total : 0;
    bar.append(part);
  }
  const row = ([stage, word]) => {
    const times = before.map((each) => each[stage]);
    return element("tr", {},
      element("th", {scope: "row"}, element("span", {class: `key ${stage}`}), word),
      ...[now[stage], quantile(times, 0.5), quantile(times, 0.95)].map((value) => element("td", {}, milliseconds(value))));
  };
  const things = answer.find === "images" ? ["picture", "pictures"] : ["caption", "captions"];
  const choice = element("select", {"aria-label": `Backend ${name}`.trim(), data: {focus: `backend ${name}`}, on: {change: (event) => chooseBackend(event.target.value)}},
    ...backends.map((each) => element("option", {value: each, selected: each === answer.backend}, each)));
  return element("div", {class: "timing", data: {model: answer.model}},
    element("p", {class: "among"}, name && element("b", {class: `model ${answer.model}`}, name), ` among ${count(answer.count, ...things)} with `, choice),
    bar,
    element("table", {},
      element("thead", {}, element("tr", {}, element("td", {}, "ms"), ...["this", "median", "p95"].map((word) => element("th", {scope: "col"}, word)))),
      element("tbody", {}, ...STAGES.map(row)),
    ),
    element("p", {class: "last"}, `median and p95 of the last ${before.length}`));
}
