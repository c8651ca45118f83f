/** Remembers which nodes failed in their last run and why, until a person changes them or they run again. */

import { nodeAt, openGraph } from "../shared/graph.mjs";
import { fromStorage, toStorage } from "../shared/stored.mjs";

const STORED_AS = "loralocksmith.faults"; // for this tab of the browser, so that they outlast a reload
const MOST = 64;

/**
 * `values`: those of the node's widgets when it failed.
 *
 * @typedef {{message: string, values: string}} Fault
 * @type {Map<string, Fault>} by the workflow's id and the node's execution id
 */
const faults = new Map(stored());
/** Keys of faults whose node has been as it was then since the page was opened. While a workflow loads, its nodes are not yet. */
const seen = new Set();

/** @returns {[string, Fault][]} */
function stored() {
  const pairs = fromStorage("sessionStorage", STORED_AS);
  return Array.isArray(pairs) ? pairs.filter((pair) => typeof pair?.[0] === "string" && typeof pair[1]?.message === "string") : [];
}

function store() {
  toStorage("sessionStorage", STORED_AS, [...faults]);
}

/** @param {string} key */
function forget(key) {
  seen.delete(key);
  if (faults.delete(key)) store();
}

/** @param {string} place */
function keyOf(place) {
  return `${openGraph()} ${place}`;
}

/** @param {any} node */
function valuesOf(node) {
  const values = (node.widgets ?? []).filter((/** @type {any} */ { serialize }) => serialize !== false);
  return JSON.stringify(values.map((/** @type {any} */ { value }) => value));
}

/**
 * @param {string} place the node's execution id in the open workflow
 * @param {string} message
 */
export function noteFault(place, message) {
  const node = nodeAt(place);
  if (!node) return;
  faults.delete(keyOf(place));
  faults.set(keyOf(place), { message, values: valuesOf(node) });
  seen.add(keyOf(place));
  if (faults.size > MOST) faults.delete(/** @type {string} */ (faults.keys().next().value));
  store();
}

/**
 * @param {string} place
 * @param {(message: string) => Promise<string>} inWords says it in the front end's language, which the host does not
 */
export async function translateFault(place, inWords) {
  const fault = faults.get(keyOf(place));
  if (!fault) return;
  fault.message = await inWords(fault.message);
  store();
}

/** @param {string} place */
export function forgetFault(place) {
  forget(keyOf(place));
}

/**
 * The nodes of the open workflow whose last run failed and that are as they were then: what to show on each. What a person has changed
 * since is forgotten.
 *
 * @returns {Map<object, string>}
 */
export function standingFaults() {
  const found = new Map();
  const start = keyOf("");
  for (const [key, { message, values }] of [...faults]) {
    if (!key.startsWith(start)) continue;
    const node = nodeAt(key.slice(start.length));
    if (node && valuesOf(node) === values) {
      seen.add(key);
      found.set(node, message);
    } else if (node && seen.has(key)) forget(key);
  }
  return found;
}
