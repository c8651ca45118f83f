/** Sets again what was set on a subgraph's outside, and forgotten. */

import { graphsOf } from "./promoted.mjs";

/** @typedef {import("./promoted.mjs").Setting} Setting */
/** @typedef {import("./promoted.mjs").Opened} Opened */

const BOUNDARY = -10;

/**
 * Set again what nodes of subgraphs were set to, where widgets take it that were missing.
 *
 * @param {any} workflow as saved; is changed
 * @param {Opened} opened
 */
export function giveBackPromoted(workflow, opened) {
  const subgraphs = new Map((workflow.definitions?.subgraphs ?? []).map((/** @type {any} */ graph) => [graph.id, graph]));
  const hosts = graphsOf(workflow).flatMap((graph) => {
    const nodes = graph.nodes.filter((/** @type {any} */ { type }) => subgraphs.has(type));
    return nodes.map((/** @type {any} */ node) => ({ node, setting: opened.get(`${graph.id} ${node.id}`) }));
  });
  // What is set on an outer subgraph goes through the inner ones.
  while (hosts.some(({ node, setting }) => setting && giveBack(node, setting, subgraphs.get(node.type))));
}

/**
 * @param {any} host
 * @param {Setting} setting
 * @param {any} subgraph
 * @returns {boolean} whether a widget came back
 */
function giveBack(host, setting, subgraph) {
  const values = host.widgets_values ?? [];
  const before = host.inputs.filter((/** @type {any} */ { widget }) => widget);
  const isMissing = (/** @type {any} */ input) => !input.widget && setting.names.includes(input.name) && takesValue(subgraph, input.name);
  const missing = host.inputs.filter(isMissing);
  if (!missing.length) return false;
  const now = new Map(before.map((/** @type {any} */ { name }, /** @type {number} */ i) => {
    const isMoved = values[i] === setting.values[i] && setting.names.includes(name); // it has the value of one before it
    return [name, isMoved ? valueIn(setting, name) : values[i]];
  }));
  for (const input of missing) {
    input.widget = { name: input.name };
    now.set(input.name, valueIn(setting, input.name));
  }
  const names = host.inputs.filter((/** @type {any} */ { widget }) => widget).map((/** @type {any} */ { name }) => name);
  host.widgets_values = names.map((/** @type {string} */ name) => now.get(name));
  if (host.widgets_values_named) host.widgets_values_named = Object.fromEntries(names.map((/** @type {string} */ name) => [name, now.get(name)]));
  return true;
}

/**
 * @param {Setting} setting
 * @param {string} name
 */
function valueIn({ names, values }, name) {
  return values[names.indexOf(name)];
}

/**
 * Whether an input of a subgraph goes to a widget.
 *
 * @param {any} subgraph
 * @param {string} name
 */
function takesValue(subgraph, name) {
  const slot = subgraph.inputs.findIndex((/** @type {any} */ input) => input.name === name);
  const links = subgraph.links.filter((/** @type {any} */ link) => link.origin_id === BOUNDARY && link.origin_slot === slot);
  return links.some((/** @type {any} */ link) => {
    const target = subgraph.nodes.find((/** @type {any} */ { id }) => String(id) === String(link.target_id));
    return target?.inputs?.[link.target_slot]?.widget;
  });
}
