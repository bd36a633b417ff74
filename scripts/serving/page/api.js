// What is asked of the service, and what the page says where it does not answer.

const TRIES = 5; // of a service that is busy, before the user is asked
const AROUND = 4096; // bytes of a form, at most, besides its picture

/** The service refused, in its own words. */
export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** Nothing answers. */
export class Gone extends Error {}

/** JSON of an address, or Refused, or Gone. Who cannot answer now (503) is asked again when it says; `waiting(seconds, why)` is told. */
export async function ask(path, {signal, waiting = () => {}, ...options} = {}) {
  for (let tries = 1; ; tries++) {
    let response, answer = null;
    try {
      response = await fetch(path, {signal, credentials: "same-origin", ...options});
      answer = await response.json();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      if (!(error instanceof SyntaxError)) throw new Gone("The service does not answer.");
    }
    if (response.ok && answer !== null) return answer;
    const why = answer?.error ?? `the service answered with status ${response.status}`;
    if (response.status !== 503 || tries === TRIES) throw new Refused(why, response.status);
    const seconds = Math.max(1, Number(response.headers.get("Retry-After")) || 1);
    waiting(seconds, why);
    await pause(1000 * seconds, signal);
  }
}

/** POST /api/search: a question of state.js, with a photo of one's own where there is one, which must fit into `most` bytes. */
export async function search(question, photo, {most, ...options}) {
  if (!photo) {
    return ask("api/search", {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(question), ...options});
  }
  if (photo.size > most - AROUND) throw new Refused(`${photo.name} has ${photo.size.toLocaleString("en")} bytes, expected at most ${(most - AROUND).toLocaleString("en")}: scale it down`, 413);
  const form = new FormData();
  for (const [name, value] of Object.entries(question)) form.set(name, value);
  form.set("picture", photo);
  return ask("api/search", {method: "POST", body: form, ...options});
}

function pause(time, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, time);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
