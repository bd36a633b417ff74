// What was found: a grid of pictures, or a list of captions; of one checkpoint, or of two side by side.
import {count, element, notice, picture, score} from "./elements.js";
import {addressOf, changed} from "./state.js";

const CARD = 320; // pixels of a picture in the grid
const THUMB = 96;

/** The results of an answer.
 *
 * `found` = {answer, state, hasPhotos, go, twins}: twins = id → rank in the answer beside this one, null where there is none.
 */
export function resultsOf(found) {
  const hits = found.answer.results[0];
  if (!hits.length) return notice("word", nothingFound(found));
  const isPictures = found.answer.find === "images";
  return element("ol", {class: isPictures ? "grid" : "captions", data: {model: found.answer.model}},
    ...hits.map((hit) => (isPictures ? pictureCard : captionLine)(hit, found)));
}

function nothingFound({answer}) {
  if (answer.find === "captions") return "Nothing found: the index holds no caption.";
  return answer.count <= 1 ? "Nothing found: the gallery holds no other picture." : "Nothing found.";
}

function pictureCard(hit, found) {
  const {state, hasPhotos, go, twins} = found;
  const pick = state.from === "picture" && !state.image && !state.own; // one of these is to be asked
  const target = pick ? changed(state, {image: hit.id, find: "captions"}) : {...state, open: hit.id};
  const text = hit.captions?.[0] ?? "";
  const link = element("a", {class: "result", href: addressOf(target), data: {id: hit.id}, on: {click: follow(go, target)},
      "aria-label": `${hit.rank}: ${text || hit.id}, score ${score(hit.score)}${movedInWords(hit)}`},
    element("span", {class: "frame"}, picture(hit.id, CARD, text || hit.id, hasPhotos)),
    element("span", {class: "line"}, element("b", {class: "rank"}, hit.rank), moved(hit), element("span", {class: "score"}, score(hit.score))),
    element("span", {class: "caption"}, text || hit.id));
  return element("li", {class: twinKind(hit, found), data: {id: hit.id}}, link, twins && twinOf(hit, found));
}

const twinKind = (hit, {twins}) => (twins ? (twins.has(hit.id) ? "both" : "single") : "");

/** Where the other checkpoint has the same picture or caption. */
function twinOf(hit, {answer, twins}) {
  const other = answer.model === "a" ? "b" : "a";
  const name = other.toUpperCase();
  if (!twins.has(hit.id)) return element("span", {class: "twin none"}, `only ${answer.model.toUpperCase()}`);
  const seek = () => document.querySelector(`[data-model="${other}"] .result[data-id="${CSS.escape(hit.id)}"]`).focus();
  return element("button", {class: "twin", type: "button", on: {click: seek}, title: `show it among the results of ${name}`}, `${name}: ${twins.get(hit.id)}`);
}

function captionLine(hit, found) {
  const {state, hasPhotos, go, twins} = found;
  const target = changed(state, {from: "text", q: hit.text ?? "", image: "", own: "", find: "captions"});
  const isOwn = hit.image !== undefined && hit.image === state.image;
  const words = element("span", {class: "words", lang: hit.language || null}, hit.text ?? hit.id);
  const inside = [
    element("b", {class: "rank"}, hit.rank),
    element("span", {class: "score"}, score(hit.score)),
    hit.image !== undefined && hasPhotos ? picture(hit.image, THUMB, "", true) : element("span", {}),
    element("span", {class: "text"}, words, isOwn && element("span", {class: "own"}, "written for this picture")),
  ];
  const properties = {class: "result", data: {id: hit.id}};
  return element("li", {class: `${isOwn ? "right" : ""} ${twinKind(hit, found)}`.trim(), data: {id: hit.id}}, hit.text
    ? element("a", {...properties, href: addressOf(target), title: "find pictures for these words", on: {click: follow(go, target)}}, ...inside)
    : element("span", properties, ...inside), twins && twinOf(hit, found));
}

/** How far the re-ranker moved a result. */
function moved(hit) {
  if (hit.first_rank === undefined) return null;
  const by = hit.first_rank - hit.rank;
  const kind = by > 0 ? "up" : by < 0 ? "down" : "same";
  return element("span", {class: `moved ${kind}`, title: `was ${hit.first_rank} before the re-ranker`}, by ? `${by > 0 ? "▲" : "▼"}${Math.abs(by)}` : "=");
}

function movedInWords(hit) {
  if (hit.first_rank === undefined) return "";
  return hit.first_rank === hit.rank ? ", not moved by the re-ranker" : `, was ${hit.first_rank} before the re-ranker`;
}

/** A click on a link that stays in this page; one that opens a tab is the browser's. */
export function follow(go, target) {
  return (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
    event.preventDefault();
    go(target);
  };
}

/** id → rank of an answer's results. */
export const ranksOf = (answer) => new Map(answer.results[0].map((hit) => [hit.id, hit.rank]));

/** What two answers have in common, in words. */
export function inCommon(a, b) {
  const [ranks, others] = [ranksOf(a), ranksOf(b)];
  const both = [...ranks.keys()].filter((id) => others.has(id)).length;
  const things = a.find === "images" ? ["picture", "pictures"] : ["caption", "captions"];
  return `${both} in common, ${count(ranks.size - both, ...things)} only in A, ${others.size - both} only in B`;
}

/** Shows on both sides the result that is pointed at or focused on one of them. */
export function linkTwins(around) {
  const mark = (event) => {
    const id = event.target.closest("li")?.dataset.id;
    for (const each of around.querySelectorAll("li.both")) each.classList.toggle("linked", each.dataset.id === id);
  };
  around.addEventListener("pointerover", mark);
  around.addEventListener("focusin", mark);
}
