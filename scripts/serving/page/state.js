// What the page shows, as the part of its address behind the "?": a link shows the same again, and back and forward work.

const DEFAULTS = {
  view: "search", // or "failures"
  from: "text", // or "picture": what is asked
  q: "", // words
  image: "", // id of a picture of the gallery, that is asked
  own: "", // name of a photo of one's own, that is asked; the photo itself is nowhere but in this page
  find: "captions", // of a picture; or "images": pictures like it
  k: 24,
  backend: "", // exact
  rerank: "", // how many, 0 for none; "": as the service was started
  mix: "", // as the service was started
  models: "a", // "b", or "ab": side by side
  open: "", // id of the picture that is shown large
  direction: "t2i", only: "wrong", order: "worst", language: "", at: 1, offset: 0, // of the list of failures
};
const NUMBERS = ["k", "rerank", "mix", "at", "offset"];

/** The state that an address asks for. What is no number stays what it is, for the service to refuse it in words. */
export function stateOf(search) {
  const given = new URLSearchParams(search);
  const state = {...DEFAULTS};
  for (const name of Object.keys(DEFAULTS)) {
    const value = given.get(name);
    if (value !== null) state[name] = NUMBERS.includes(name) && value !== "" && isFinite(value) ? Number(value) : value;
  }
  return state;
}

/** The address of a state: what is as it is by itself is left out. */
export function addressOf(state) {
  const given = new URLSearchParams();
  for (const [name, value] of Object.entries(DEFAULTS)) if (String(state[name]) !== String(value)) given.set(name, state[name]);
  return `?${given}`;
}

/** A state with some of it changed; a new question closes the picture that is open. */
export const changed = (state, change) => ({...state, open: "", ...change});

/** The models that are asked. */
export const modelsOf = (state) => (state.models === "ab" ? ["a", "b"] : [state.models]);

/** The body of POST /api/search for one of the models; null where nothing is asked. Side by side each ranks again that can. */
export function questionOf(state, model, canRerank, hasCaptions) {
  const question = {k: state.k, model};
  if (state.backend) question.backend = state.backend;
  if (state.from === "picture" && (state.image || state.own)) {
    question.find = hasCaptions ? state.find : "images"; // where no captions are served
    if (state.image) question.image = state.image;
    return question;
  }
  if (!state.q.trim()) return null;
  question.text = state.q;
  if (state.models === "ab" && !canRerank) return question;
  if (state.rerank !== "") question.rerank = state.rerank;
  if (state.mix !== "" && state.rerank !== 0) question.mix = state.mix;
  return question;
}
