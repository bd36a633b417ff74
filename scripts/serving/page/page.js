// The page: what the address says is shown, and what is done changes the address.
import {Gone, ask, search} from "./api.js";
import {byId, element, folder, notice, picture, redraw} from "./elements.js";
import {showFailures} from "./failures.js";
import {listenToKeys} from "./keys.js";
import {showLarge} from "./large.js";
import {follow, inCommon, linkTwins, ranksOf, resultsOf} from "./results.js";
import {addressOf, changed, modelsOf, questionOf, stateOf} from "./state.js";
import {addTiming, timingsOf} from "./timings.js";

const SLOW = 1000; // milliseconds after which a search says that it is still there
const AGAIN = 3000; // milliseconds between two looks for a service that is gone

let info = null; // what is served
let state = stateOf(location.search);
let photo = null; // of one's own
let photoAddress = ""; // blob: of it
let asking = new AbortController(); // the search that is under way
let openedIn = ""; // the checkpoint among whose results a picture was opened
let shownFor = null; // the question whose answers are shown
let shownWords = ""; // that the box was last filled with

// ---- the address ------------------------------------------------------------------------------------------------------

/** Show another state, as a new entry of the browser's history, or in place of the one that is there. */
function go(next, isReplacing = false) {
  const opens = next.open !== "" && state.open === "";
  if (opens) openedIn = document.activeElement?.closest("[data-model]")?.dataset.model ?? "";
  state = next;
  history[isReplacing ? "replaceState" : "pushState"](opens || (isReplacing && history.state?.opened) ? {opened: true} : null, "", addressOf(state));
  show();
}

/** The picture that was open is closed: back to where it was opened, if that was in this page. */
function leaveLarge() {
  if (!state.open) return;
  const {open} = state;
  state = {...state, open: ""};
  if (history.state?.opened) history.back();
  else go(state, true);
  resultsWith(open).find((each) => each.dataset.id === open)?.focus();
}

window.addEventListener("popstate", () => {
  state = stateOf(location.search);
  show();
});

function show() {
  if (info === null) return; // whatever is asked until the service answers is shown then
  const isSearch = state.view !== "failures";
  byId("search").hidden = !isSearch;
  byId("failures").hidden = isSearch;
  for (const [id, isHere, view] of [["to-search", isSearch, "search"], ["to-failures", !isSearch, "failures"]]) {
    byId(id).href = addressOf(changed(state, {view}));
    if (isHere) byId(id).setAttribute("aria-current", "page");
    else byId(id).removeAttribute("aria-current");
  }
  const words = state.from === "text" ? state.q : state.image || state.own;
  document.title = `${isSearch ? words || "Search" : "Failures"} – LightningDOT`;
  showControls();
  const question = JSON.stringify([state.view, isSearch ? questions() : {...state, open: ""}, state.models, isSearch && state.own && photoAddress, isSearch && state.from]);
  if (question !== shownFor) {
    shownFor = question;
    asking.abort();
    asking = new AbortController();
    showServed();
    if (isSearch) showSearch(asking.signal);
    else showFailures({state, current: () => state, info, go, gone: showGone, signal: asking.signal});
  }
  showLarge({state, info, go, neighbours});
}

/** The pictures found among which one is; of two checkpoints, of that one where it was opened. */
function resultsWith(id) {
  const of = (model) => [...document.querySelectorAll(`#search:not([hidden]) .grid[data-model="${model}"] a.result`)];
  return [openedIn, "a", "b"].map(of).find((results) => results.some((each) => each.dataset.id === id)) ?? [];
}

/** The ids before and after one. */
function neighbours(id) {
  const ids = resultsWith(id).map((each) => each.dataset.id);
  const place = ids.indexOf(id);
  return [ids[place - 1], ids[place + 1]].map((each) => (place < 0 ? undefined : each));
}

// ---- the controls -----------------------------------------------------------------------------------------------------

function showControls() {
  const isText = state.from === "text";
  for (const each of document.querySelectorAll("input[name=from]")) each.checked = each.value === state.from;
  for (const each of document.querySelectorAll("input[name=models]")) each.checked = each.value === state.models;
  byId("words").hidden = !isText;
  byId("photo").hidden = isText;
  if (state.q !== shownWords) byId("q").value = shownWords = state.q; // what is being typed stays
  byId("k").value = numeric(state.k);
  const reranking = modelsOf(state).map((model) => info.models[model]).filter((model) => model?.reranker);
  byId("reranking").hidden = !reranking.length || !isText;
  byId("rerank-on").checked = state.rerank !== 0;
  showNumber("rerank", state.rerank === 0 ? "" : state.rerank, reranking);
  showNumber("mix", state.mix, reranking);
  byId("rerank").disabled = byId("mix").disabled = state.rerank === 0;
  showAsked();
}

const numeric = (value) => (typeof value === "number" ? value : "");

/** What the address says of re-ranking; where it says nothing, what the re-rankers were started with, of two that differ each. */
function showNumber(name, value, reranking) {
  const each = [...new Set(reranking.map((model) => model[name]))];
  byId(name).value = numeric(value === "" && each.length === 1 ? each[0] : value);
  byId(name).placeholder = each.length > 1 ? each.join(" · ") : "";
}

/** The picture that is asked with, and how another one is given. */
function showAsked() {
  const own = info.models[modelsOf(state)[0]]?.own_pictures;
  byId("choose").hidden = !own;
  const parts = [];
  if (state.image) parts.push(picture(state.image, 192, state.image, info.photos), element("span", {class: "name"}, state.image));
  else if (state.own && photo) parts.push(element("img", {src: photoAddress, alt: state.own}), element("span", {class: "name"}, state.own));
  if (parts.length) {
    const kinds = state.own ? [] : [["captions", "its captions"], ["images", "pictures like it"]];
    const found = findsCaptions() ? state.find : "images";
    parts.push(element("span", {class: "finds"}, ...kinds.map(([find, words]) => {
      if (find === "captions" && !findsCaptions()) return element("span", {class: "faint", title: "serve.py was started without --captions-index"}, "no captions are served");
      const target = changed(state, {find});
      return element("a", {href: addressOf(target), data: {focus: find}, "aria-current": found === find && "true", on: {click: follow(go, target)}}, words);
    })));
  }
  redraw(byId("asked"), ...parts);
  const places = [state.q && "click one of the pictures below", own && "drop or choose a photo of your own"].filter(Boolean).join(", or ");
  byId("photo-hint").textContent = parts.length ? (own ? "or drop another photo" : "") : places && `${places[0].toUpperCase()}${places.slice(1)}.`;
}

function listenToControls() {
  byId("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    const q = byId("q").value.trim();
    const next = changed(state, {from: "text", q, image: "", own: "", find: "captions"});
    if (addressOf(next) === addressOf(state)) shownFor = null; // the same once more, for its time
    go(next, shownFor === null);
  });
  byId("from").addEventListener("change", (event) => go(changed(state, {from: event.target.value, image: "", own: "", find: "captions"})));
  byId("models").addEventListener("change", (event) => go(changed(state, {models: event.target.value})));
  byId("rerank-on").addEventListener("change", (event) => go(changed(state, {rerank: event.target.checked ? "" : 0})));
  for (const name of ["k", "rerank", "mix"]) {
    byId(name).addEventListener("change", (event) => {
      if (event.target.value !== "" && event.target.validity.valid) go(changed(state, {[name]: Number(event.target.value)}));
      else event.target.reportValidity();
    });
  }
  byId("file").addEventListener("change", (event) => {
    if (event.target.files.length) askWith(event.target.files[0]);
    event.target.value = "";
  });
  byId("large").addEventListener("close", leaveLarge); // by Escape too
  byId("large").addEventListener("click", (event) => event.target === byId("large") && byId("large").close()); // beside it
  for (const each of document.querySelectorAll("a[data-go]")) {
    each.addEventListener("click", (event) => follow(go, stateOf(new URL(each.href).search))(event));
  }
}

/** Ask with a photo of one's own. */
function askWith(file) {
  URL.revokeObjectURL(photoAddress);
  photo = file;
  photoAddress = URL.createObjectURL(file);
  go(changed(state, {view: "search", from: "picture", image: "", own: file.name || "photo", find: "captions"}));
}

function listenToDrops() {
  const isFile = (event) => info?.models[modelsOf(state)[0]]?.own_pictures && [...(event.dataTransfer?.types ?? [])].includes("Files");
  const over = (event) => {
    if (!isFile(event)) return;
    event.preventDefault();
    byId("drop").hidden = false;
  };
  document.addEventListener("dragenter", over);
  document.addEventListener("dragover", over);
  document.addEventListener("dragleave", (event) => event.relatedTarget === null && (byId("drop").hidden = true));
  document.addEventListener("drop", (event) => {
    if (!isFile(event)) return;
    event.preventDefault();
    byId("drop").hidden = true;
    if (event.dataTransfer.files.length) askWith(event.dataTransfer.files[0]);
  });
}

// ---- a search ---------------------------------------------------------------------------------------------------------

const questions = () => modelsOf(state).map((model) => questionOf(state, model, info.models[model]?.reranker, info.models[model]?.captions));

/** Whether a picture finds captions: an index of them is served. */
const findsCaptions = () => modelsOf(state).some((model) => info.models[model]?.captions);

async function showSearch(signal) {
  const asked = questions();
  const here = {...state};
  if (asked.some((each) => each === null) || (here.from === "picture" && here.own && !photo)) {
    byId("timings").replaceChildren();
    say("");
    const first = here.own ? notice("word", `${here.own} was in this page alone: drop or choose it again.`) : await welcome();
    if (signal.aborted) return;
    byId("results").className = "";
    byId("results").replaceChildren(first);
    return;
  }
  const ownPhoto = here.from === "picture" && here.own ? photo : null;
  const slow = stillThere(signal), most = info.limits.picture_bytes;
  const waiting = (seconds, why) => slow.say(`${sentence(why)} It is asked again in ${seconds} s. `);
  const outcomes = await Promise.all(asked.map(async (question) => {
    try {
      return await search(question, ownPhoto, {signal, waiting, most});
    } catch (error) {
      return error;
    }
  }));
  slow.end();
  if (signal.aborted) return;
  if (outcomes.every((each) => each instanceof Gone)) return showGone();
  const answers = outcomes.filter((each) => !(each instanceof Error));
  for (const answer of answers) addTiming(answer, ownPhoto !== null);
  const isTwo = asked.length === 2;
  redraw(byId("timings"), ...answers.map((answer) => timingsOf(answer, {
    name: isTwo ? answer.model.toUpperCase() : "", isPhoto: ownPhoto !== null,
    backends: info.models[answer.model][answer.find].backends, chooseBackend: (backend) => go(changed(state, {backend})),
  })));
  const isCompared = isTwo && answers.length === 2;
  say(isCompared ? inCommon(...answers) : "");
  byId("results").replaceChildren(...outcomes.map((outcome, number) => column(outcome, {
    state: here, hasPhotos: info.photos, go, name: isTwo ? "AB"[number] : "",
    twins: isCompared ? ranksOf(answers[1 - number]) : null, isUnlike: isCompared && !outcome.rerank && answers[1 - number].rerank,
  })));
  byId("results").classList.toggle("two", isTwo);
  if (state.open) showLarge({state, info, go, neighbours});
  ask("api/info", {signal}).then((now) => ((info = now), showServed()), () => {}); // an index may have changed
}

/** The answer of one checkpoint, or why there is none. */
function column(outcome, found) {
  const heading = found.name && element("h2", {}, element("b", {class: `model ${found.name.toLowerCase()}`}, found.name), " ", ...folder(info.models[found.name.toLowerCase()].checkpoint));
  const parts = outcome instanceof Error
    ? [notice("bad", sentence(outcome.message), " ", again(), state.backend && " ", state.backend && exactly())]
    : [...(found.isUnlike ? [`no re-ranker is served for ${found.name}: the order is the dot product's`] : []), ...outcome.notes].map((line) => notice("word", sentence(line))).concat(resultsOf({...found, answer: outcome}));
  return element("section", {"aria-label": found.name ? `Results of ${found.name}` : "Results"}, heading, ...parts);
}

const sentence = (line) => `${line}${/[.!?]$/.test(line) ? "" : "."}`;

const exactly = () => element("button", {type: "button", on: {click: () => go(changed(state, {backend: ""}))}}, "Search with exact");

const again = () => element("button", {type: "button", on: {click: askAgain}}, "Try again");

function askAgain() {
  if (info === null) return start();
  shownFor = null;
  show();
}

/** Tells after a second that a search is under way, with a way to stop it; at once where it must wait, and why. */
function stillThere(signal) {
  const started = performance.now();
  let word = "";
  byId("results").classList.add("waiting");
  const stop = element("button", {type: "button", on: {click: () => (asking.abort(), end(), say("Stopped. ", again()))}}, "Stop");
  const line = element("span", {}), otherwise = exactly();
  const tell = () => {
    if (signal.aborted) return;
    line.textContent = word || `Still searching, ${Math.round((performance.now() - started) / 1000)} s. `;
    if (!line.isConnected) say(line, stop);
    if (word && state.backend && !otherwise.isConnected) stop.after(" ", otherwise);
  };
  const timer = setInterval(tell, SLOW);
  function end() {
    clearInterval(timer);
    if (!signal.aborted) byId("results").classList.remove("waiting");
  }
  signal.addEventListener("abort", () => clearInterval(timer));
  return {end, say: (words) => ((word = words), tell())};
}

const say = (...parts) => byId("status").replaceChildren(...parts.filter((part) => part !== ""));

/** Nothing answers: look for it until it is back. */
async function showGone() {
  byId("service").replaceChildren(notice("bad", "The service does not answer. When it is back, this page goes on. ", again()));
  asking.abort(); // who looked for it before
  asking = new AbortController();
  const {signal} = asking;
  while (!signal.aborted) {
    await new Promise((resolve) => setTimeout(resolve, AGAIN));
    if (signal.aborted) return;
    try {
      await ask("api/healthz", {signal});
      return askAgain();
    } catch (error) {
      if (!(error instanceof Gone)) return;
    }
  }
}

/** What is shown before anything is asked: a few captions of the evaluation, where there is one, to begin with. */
async function welcome() {
  const size = info.models.a.images.count.toLocaleString("en");
  const parts = [element("p", {}, state.from === "text" ? `${size} pictures are here. Say in words what you look for.` : `A picture finds ${findsCaptions() ? "captions" : "pictures like it, since no captions are served"}. One of the gallery is found with words first, and then clicked.`)];
  if (info.evaluation) {
    const listed = await ask("api/failures?only=all&order=best&limit=60").catch(() => ({queries: []}));
    const ofPictures = new Map(listed.queries.map((query) => [query.right[0], query.texts[query.id]])); // one of each
    const texts = [...ofPictures.values()].filter(Boolean).sort((a, b) => a.length - b.length).slice(0, 6);
    parts.push(element("ul", {class: "examples"}, ...texts.map((q) => {
      const target = changed(state, {q});
      return element("li", {}, element("a", {href: addressOf(target), on: {click: follow(go, target)}}, q));
    })));
  }
  return element("div", {class: "welcome"}, ...parts);
}

// ---- the beginning ----------------------------------------------------------------------------------------------------

function showServed() {
  const hasTwo = "b" in info.models;
  byId("models").hidden = !hasTwo;
  byId("to-failures").hidden = !info.evaluation;
  byId("served").replaceChildren(...(hasTwo ? [] : folder(info.models.a.checkpoint)));
  const refused = Object.values(info.models).flatMap((model) => [model.images, model.captions]).map((index) => index?.refused).filter(Boolean);
  byId("service").replaceChildren(...refused.map((why) => notice("bad", `What is on the disk now is not searched, but the index that was there before: ${why}`)));
}

async function start() {
  try {
    info = await ask("api/info");
  } catch (error) {
    if (error instanceof Gone) return showGone();
    return byId("service").replaceChildren(notice("bad", sentence(error.message)));
  }
  for (const name of ["k", "rerank"]) byId(name).max = info.limits[name];
  byId("settings").open = matchMedia("(min-width: 700px)").matches;
  show();
}

listenToControls();
listenToDrops();
listenToKeys(() => {
  if (state.from !== "text" || state.view !== "search") go(changed(state, {view: "search", from: "text"}));
  byId("q").focus();
  byId("q").select();
});
linkTwins(byId("results"));
start();
