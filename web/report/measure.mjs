/** Has the server measure the weights of a file, or of two beside each other, and tells what it found. */

import { ask, order, Refusal } from "../shared/server.mjs";
import { asSentence, say, tell } from "../i18n/words.mjs";
import "../i18n/more.mjs";

/**
 * How much A and B change a layer or a block: the squares of the changes' norms, and the cosine of the angle between them.
 *
 * @typedef {{component: string, blocks: string, number: number, kind?: string, energy_a: number | null, energy_b: number | null,
 *   cosine: number | null}} Change
 * @typedef {{file: string, module: string, reason: string}} Left what could not be measured, and why
 * @typedef {{layers: Map<string, Change>, blocks: Change[], norm_a: number | null, norm_b: number | null, cosine: number | null,
 *   left_out: Left[], translations: import("../i18n/words.mjs").Translations}} Measured
 */

/**
 * @param {{name: string, other?: string}} question
 * @param {(done: number, total: number) => void} progress
 * @param {AbortSignal} signal ends it on the server too
 * @returns {Promise<Measured>}
 * @throws {Refusal}
 */
export async function measure(question, progress, signal) {
  const stop = () => void order("weights_stop", question).catch(() => {});
  signal.addEventListener("abort", stop, { once: true });
  try {
    for (;;) {
      const answer = await ask("weights", question, signal);
      if (answer.error) throw new Refusal(asSentence(tell(answer.error, answer.translations)));
      if (answer.weights) return measuredOf(answer);
      progress(answer.done, answer.total);
    }
  } finally {
    signal.removeEventListener("abort", stop);
  }
}

/**
 * @param {any} answer of the route
 * @returns {Measured}
 */
function measuredOf({ weights, translations }) {
  const layers = new Map();
  for (const change of weights.layers) layers.set(placeKey(change.component, change.blocks, change.number, change.kind), change);
  return { ...weights, layers, translations };
}

/**
 * By which a layer is found.
 *
 * @param {string} component
 * @param {string} blocks
 * @param {number} block
 * @param {string} kind
 */
export function placeKey(component, blocks, block, kind) {
  return [component, blocks, block, kind].join("\n");
}

/**
 * What part of a file's energy that is, for people.
 *
 * @param {number | null | undefined} energy
 * @param {number | null} norm of all of the file
 */
export function tellShare(energy, norm) {
  if (typeof energy !== "number" || !norm) return say("notKnown");
  return `${percentOf(energy, norm).toLocaleString(undefined, { maximumSignificantDigits: 2 })} %`;
}

/**
 * @param {number | null | undefined} energy
 * @param {number | null} norm
 */
export function percentOf(energy, norm) {
  return energy && norm ? (100 * energy) / (norm * norm) : 0;
}

/** @param {number} cosine */
export function tellCosine(cosine) {
  return (Number(cosine.toFixed(3)) || 0).toFixed(3); // no -0.000
}

/** @param {unknown} fault */
export function isAbort(fault) {
  return fault instanceof DOMException && fault.name === "AbortError";
}
