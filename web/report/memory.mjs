/** Remembers in the browser which run a node's report came from, so that it can be asked for again after a reload. */

import { api } from "../../../scripts/api.js";
import { fromStorage, toStorage } from "../shared/stored.mjs";

/**
 * The front end forgets all outputs when the page is loaded anew, and the server does not send a cached loader's again. But the
 * server's history has them, so only the ids of runs are kept here.
 */
const STORED_AS = "loralocksmith.runs";
const MAX_RUNS = 64;

/**
 * One report: `graph` is the workflow's id, `place` the node's execution id in it (such as "8" or "5:8"), `run` the prompt's id,
 * `node` the id under which that run's history lists the output.
 *
 * @typedef {{graph: string, place: string, run: string, node: string}} Memory
 */

/** @returns {Memory[]} */
function read() {
  const stored = fromStorage("localStorage", STORED_AS);
  return Array.isArray(stored) ? stored.filter((memory) => memory && typeof memory.place === "string") : [];
}

/** @param {Memory} memory */
export function remember(memory) {
  const others = read().filter((other) => other.graph !== memory.graph || other.place !== memory.place);
  // Where it cannot be stored, the report is gone after a reload, and back after the next run.
  toStorage("localStorage", STORED_AS, [...others, memory].slice(-MAX_RUNS));
}

/**
 * The outputs the server still has of a workflow's nodes, by the nodes' execution ids.
 *
 * @param {string} graph
 * @returns {Promise<Map<string, unknown>>}
 */
export async function recall(graph) {
  const memories = read().filter((memory) => memory.graph === graph);
  const runs = new Map([...new Set(memories.map((memory) => memory.run))].map((run) => [run, outputsOf(run)]));
  const found = new Map();
  for (const { place, run, node } of memories) {
    const output = (await runs.get(run))?.[node];
    if (output) found.set(place, output);
  }
  return found;
}

/**
 * @param {string} run
 * @returns {Promise<Record<string, unknown> | undefined>}
 */
async function outputsOf(run) {
  try {
    const answer = await api.fetchApi(`/history/${encodeURIComponent(run)}`);
    return answer.ok ? (await answer.json())[run]?.outputs : undefined;
  } catch {
    return undefined; // the server was restarted or is away
  }
}
