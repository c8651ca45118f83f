/** Asks this pack's own routes. */

import { api } from "../../../scripts/api.js";
import { say } from "../i18n/words.mjs";

const ROUTES = "/lora_locksmith/";

/** What a route refused, in words for people: what is wrong, and the remedy. */
export class Refusal extends Error {}

/** What is said of a server that does not answer. */
export class Away extends Refusal {
  constructor() {
    super(say("serverAway"));
  }
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
  const words = new URLSearchParams(Object.entries(question).map(([name, value]) => [name, String(value)]));
  return answerOf(`${ROUTES}${route}?${words}`, { signal, cache: "no-store" });
}

/**
 * Have a route do something.
 *
 * @param {string} route
 * @param {unknown} wish
 * @returns {Promise<any>}
 * @throws {Refusal}
 */
export async function tell(route, wish) {
  const headers = { "Content-Type": "application/json" };
  return answerOf(`${ROUTES}${route}`, { method: "POST", headers, body: JSON.stringify(wish) });
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
  if (!answer.ok) throw new Refusal([content.error, content.remedy].filter(Boolean).join(". "));
  return content;
}
