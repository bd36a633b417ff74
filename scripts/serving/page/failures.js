// The queries of an evaluation whose right answer did not come first, with what stood before it; the recall above.
import {Gone, ask} from "./api.js";
import {byId, count, element, notice, picture, redraw} from "./elements.js";
import {addressOf, changed} from "./state.js";
import {follow} from "./results.js";

const SLOW = 1000; // milliseconds after which the list says that it is still coming
const SHOWN = 20; // queries of a page
const THUMB = 192; // pixels
const METRICS = ["TR@1", "TR@5", "TR@10", "IR@1", "IR@5", "IR@10", "AR"];
const CHOICES = {
  direction: [["t2i", "caption → picture"], ["i2t", "picture → caption"]],
  only: [["wrong", "A wrong"], ["a_right_b_wrong", "A right and B wrong"], ["b_right_a_wrong", "B right and A wrong"], ["both_wrong", "both wrong"], ["all", "all queries"]],
  at: [[1, "first"], [5, "first 5"], [10, "first 10"]],
  order: [["worst", "worst rank first"], ["best", "best rank first"]],
};

/** Fill the section of failures. `context` = {state, current, info, go, gone, signal}; `current()` is the state by now, `gone()` is called where
 * nothing answers. */
export async function showFailures({state, current, info, go, gone, signal}) {
  const section = byId("failures");
  if (!info.evaluation) {
    section.replaceChildren(notice("word", "The service was started without --evaluation: there is no list of failures."));
    return;
  }
  const asked = new URLSearchParams({direction: state.direction, only: state.only, order: state.order, k: state.at, offset: state.offset, limit: SHOWN});
  if (state.language) asked.set("language", state.language);
  const controls = controlsOf(state, current, info, go);
  const slow = setTimeout(() => section.prepend(element("p", {class: "faint", role: "status"}, "Still loading the list.")), SLOW);
  signal.addEventListener("abort", () => clearTimeout(slow));
  try {
    const [list, recall] = await Promise.all([ask(`api/failures?${asked}`, {signal}), ask("api/recall", {signal})]);
    redraw(section, ...recallTable(recall.evaluations), controls, ...listOf(list, {state, info, go}));
  } catch (error) {
    if (error.name === "AbortError") return;
    if (error instanceof Gone) return gone();
    redraw(section, controls, notice("bad", error.message));
  } finally {
    clearTimeout(slow);
  }
}

function controlsOf(state, current, info, go) {
  const languages = info.evaluation.languages.map((language) => [language, language]);
  const choices = {...CHOICES, language: languages};
  const words = {direction: "queries", language: "language", only: "which", at: "found means among the", order: "order"};
  if (!info.evaluation.second) choices.only = [["wrong", "not found"], ["all", "all queries"]];
  return element("form", {class: "settings", "aria-label": "Which failures"}, ...Object.entries(words).map(([name, label]) => {
    const chosen = String(state[name] || languages[0][0]);
    const known = choices[name].some(([value]) => String(value) === chosen);
    const options = known ? choices[name] : [[chosen, chosen], ...choices[name]];
    const change = (event) => go(changed(current(), {[name]: event.target.value, offset: 0}));
    return element("label", {}, `${label} `, element("select", {name, data: {focus: name}, on: {change}},
      ...options.map(([value, text]) => element("option", {value, selected: String(value) === chosen}, text))));
  }));
}

function recallTable(evaluations) {
  const names = evaluations.length > 1 ? ["A", "B"] : [""];
  const languages = Object.keys(evaluations[0].recall).filter((task) => task !== "chance" && task !== "all");
  const rows = evaluations.flatMap((evaluation, number) => Object.entries(evaluation.recall)
    .filter(([task]) => task !== "chance" && (task !== "all" || languages.length !== 1)) // of one language "all" is the same
    .map(([task, recall]) => ({name: names[number], task, recall, intervals: evaluation.intervals?.[task], model: "ab"[number]})));
  const {chance} = evaluations[0].recall; // of the queries, whatever answers them
  if (chance) rows.push({name: "", task: "chance", recall: chance});
  const cell = ({recall, intervals}, metric) => element("td", {}, recall[metric] === undefined ? "" : recall[metric].toFixed(2),
    intervals?.[metric] && element("small", {}, `${intervals[metric].low.toFixed(1)}–${intervals[metric].high.toFixed(1)}`));
  const title = element("p", {class: "about-recall", id: "about-recall"}, "Recall in percent, with 95% intervals. TR: picture → caption, IR: caption → picture");
  return [title, element("div", {class: "scrolled", tabindex: "0", role: "region", "aria-labelledby": "about-recall", data: {focus: "recall"}},
    element("table", {class: "recall"},
      element("thead", {}, element("tr", {}, element("td", {}), ...METRICS.map((metric) => element("th", {scope: "col"}, metric)))),
      element("tbody", {}, ...rows.map((row) => element("tr", {},
        element("th", {scope: "row"}, row.name && element("b", {class: `model ${row.model}`}, row.name), ` ${row.task}`),
        ...METRICS.map((metric) => cell(row, metric)))))))];
}

function listOf(list, {state, info, go}) {
  if (!list.total) return [notice("word", "There is no such query.")];
  if (!list.queries.length) {
    const start = element("button", {type: "button", on: {click: () => go(changed(state, {offset: 0}))}}, "To the first");
    return [notice("word", `The list has ${count(list.total, "query", "queries")}, and ends before this place. `, start)];
  }
  const first = list.offset + 1, last = list.offset + list.queries.length;
  const page = (offset, word, possible, place) =>
    element("button", {type: "button", disabled: !possible, data: {focus: `${word} ${place}`}, on: {click: () => go(changed(state, {offset}))}}, word);
  const pages = (place) => element("p", {class: "pages"},
    page(Math.max(0, list.offset - SHOWN), "‹ before", list.offset > 0, place),
    `${first.toLocaleString("en")}–${last.toLocaleString("en")} of ${count(list.total, "query", "queries")}`,
    page(list.offset + SHOWN, "next ›", last < list.total, place));
  return [pages("above"), element("ol", {class: "missed"}, ...list.queries.map((query) => missed(query, {list, state, info, go}))), list.total > SHOWN && pages("below")].filter(Boolean);
}

/** One query: what was asked, and of each evaluation its rank, what stood before the right answer, and the right answer. */
function missed(query, {list, state, info, go}) {
  const isText = list.direction === "t2i";
  const target = {...changed(state, isText ? {from: "text", q: query.texts[query.id] ?? query.id} : {from: "picture", image: query.id, find: "captions"}), view: "search"};
  const asked = isText ? element("span", {lang: list.language, class: "asked"}, query.texts[query.id] ?? query.id) : thumb(query.id, info, "asked");
  const context = {query, isText, state, info, go, k: list.k, language: list.language};
  const isTwo = query.second_rank !== undefined;
  return element("li", {},
    element("div", {class: "query"}, element("a", {class: "result", href: addressOf(target), title: "search with it", on: {click: follow(go, target)}}, asked)),
    element("div", {class: "outcomes"},
      outcome(isTwo ? "A" : "", query.rank, query.before, context),
      isTwo && outcome("B", query.second_rank, query.second_before, context)));
}

function outcome(name, number, before, {query, isText, state, info, go, k, language}) {
  const rank = number.toLocaleString("en"), gap = number - 1 - (before ?? []).length;
  const answer = (id, kind, at) => element("li", {class: kind}, element("span", {class: "rank"}, at),
    isText ? openable(id, {state, info, go}) : element("span", {class: "words", lang: language}, query.texts[id] ?? id));
  return element("div", {class: "outcome"},
    element("p", {class: number <= k ? "found" : "not-found"}, name && element("b", {class: `model ${name.toLowerCase()}`}, name), ` rank ${rank}`),
    element("ol", {class: isText ? "answers" : "answers words"},
      ...(before ?? []).map((id, place) => answer(id, "wrong", place + 1)),
      gap > 0 && element("li", {class: "gap"}, before === null ? "the indexes of this evaluation are not there any more" : `${gap.toLocaleString("en")} more`),
      query.right.length > 1 && element("li", {class: "gap"}, `at ${rank} the best of`), // which of them it is, nobody wrote down
      ...query.right.map((id) => answer(id, "right", query.right.length > 1 ? "" : rank))));
}

const thumb = (id, info, kind) => element("span", {class: kind}, picture(id, THUMB, id, info.photos));

function openable(id, {state, info, go}) {
  const target = {...state, open: id};
  return element("a", {href: addressOf(target), "aria-label": `open ${id}`, on: {click: follow(go, target)}}, thumb(id, info, "frame"));
}
