/** Says in the front end's language what nodes stopped with, which the host tells in English. */

import { order } from "../shared/server.mjs";
import { tell } from "../i18n/words.mjs";

/**
 * @param {string[]} messages
 * @returns {Promise<string>}
 */
export async function inWords(messages) {
  return (await Promise.all(messages.map(translated))).join("\n");
}

/** @param {string} text */
async function translated(text) {
  const answer = await order("said", { text }).catch(() => ({ text })); // in English it is said already
  return tell(text, answer.translations);
}
