/** Asks this pack's own routes. */

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { asSentences, language, say, tell } from "../i18n/words.mjs";

const SHOWN = 5000; // milliseconds
const ROUTES = "/lora_locksmith/";

/** What a route refused, in words for people: what is wrong, and the remedy. */
export class Refusal extends Error {
  /** @type {Record<string, string> | undefined} the models one has to be chosen of: name -> title */
  models;
}

/** What is said of a server that does not answer. */
export class Away extends Refusal {
  constructor() {
    super(say("serverAway"));
  }
}

/**
 * Tell of what could not be done where no node is the place for it.
 *
 * @param {string} summary what was wanted
 * @param {unknown} [fault] why; the server did not answer, where that is no refusal
 */
export function tellAway(summary, fault) {
  const { message } = fault instanceof Refusal ? fault : new Away();
  app.extensionManager.toast.add({ severity: "warn", summary, detail: message, life: SHOWN });
}

/**
 * Be told when the server may answer again after it was away.
 *
 * @param {() => void} act
 * @param {AbortSignal} [signal] ends that
 */
export function whenServerIsBack(act, signal) {
  api.addEventListener("reconnected", act, { signal });
  window.addEventListener("online", act, { signal });
}

/**
 * The answer of a route to a question.
 *
 * @param {string} route such as "file"
 * @param {Record<string, string | number>} [question]
 * @param {AbortSignal} [signal] ends the waiting
 * @returns {Promise<any>}
 * @throws {Refusal}
 */
export async function ask(route, question = {}, signal) {
  return answerOf(addressOf(route, question), { signal, cache: "no-store" });
}

/**
 * A place for the picture that lies beside a file, which stays empty until it is there, and where there is none.
 *
 * @param {string} file as listed
 * @param {string} className
 */
export function pictureOf(file, className) {
  const [place, picture] = [document.createElement("span"), document.createElement("img")];
  place.className = className;
  picture.alt = "";
  picture.addEventListener("load", () => place.replaceChildren(picture));
  picture.src = api.apiURL(addressOf("picture", { name: file }));
  return place;
}

/**
 * Have a route do something.
 *
 * @param {string} route
 * @param {unknown} wish
 * @returns {Promise<any>}
 * @throws {Refusal}
 */
export async function order(route, wish) {
  const headers = { "Content-Type": "application/json" };
  return answerOf(addressOf(route, {}), { method: "POST", headers, body: JSON.stringify(wish) });
}

/**
 * @param {string} route
 * @param {Record<string, string | number>} question the language for what is shown of the answer is added
 */
function addressOf(route, question) {
  const words = Object.entries({ ...question, language: language() }).map(([name, value]) => [name, String(value)]);
  return `${ROUTES}${route}?${new URLSearchParams(words)}`;
}

/**
 * @param {string} address
 * @param {RequestInit} options
 */
async function answerOf(address, options) {
  let answer, content;
  try {
    answer = await api.fetchApi(address, options);
    content = await answer.json();
  } catch (fault) {
    if (fault instanceof DOMException && fault.name === "AbortError") throw fault;
    throw new Away();
  }
  if (answer.ok) return content;
  const said = asSentences(tell(content.error, content.translations), tell(content.remedy, content.translations));
  throw Object.assign(new Refusal(said), { models: content.models });
}
