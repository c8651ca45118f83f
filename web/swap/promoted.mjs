/**
 * Keeps the values of widgets that are set on a subgraph's outside. The front end forgets those of missing nodes' widgets when it opens
 * a workflow, and gives the next widgets their values.
 */

/**
 * What a node that stands for a subgraph was set to: the names of its widgets and their values, in the same order.
 *
 * @typedef {{names: string[], values: unknown[]}} Setting
 * @typedef {Map<string, Setting>} Opened settings by the ids of the graph and of the node in it
 */

const MAX_REMEMBERED = 20; // workflows
const BOUNDARY = -10;

/** @type {Map<string, Opened>} by the workflows' ids */
const remembered = new Map();

/** @param {any} workflow as saved */
function graphsOf(workflow) {
  return [workflow, ...(workflow.definitions?.subgraphs ?? [])];
}

/**
 * Note what the nodes of subgraphs are set to in a workflow that is about to be opened. What an undo brings back may lack what was
 * forgotten meanwhile.
 *
 * @param {any} workflow as saved
 */
export function rememberPromoted(workflow) {
  if (!workflow?.id || !workflow.definitions?.subgraphs?.length) return;
  const id = String(workflow.id);
  const opened = remembered.get(id) ?? new Map();
  for (const graph of graphsOf(workflow)) {
    for (const node of graph.nodes ?? []) {
      const names = (node.inputs ?? []).filter((/** @type {any} */ input) => input.widget).map((/** @type {any} */ input) => input.name);
      const place = `${graph.id} ${node.id}`;
      const isWhole = names.length && names.length >= (opened.get(place)?.names.length ?? 0);
      if (isWhole && Array.isArray(node.widgets_values)) opened.set(place, { names, values: node.widgets_values });
    }
  }
  remembered.delete(id);
  remembered.set(id, opened);
  if (remembered.size > MAX_REMEMBERED) remembered.delete(/** @type {string} */ (remembered.keys().next().value));
}

/**
 * @param {string} workflow its id
 * @returns {Opened | undefined}
 */
export function promotedIn(workflow) {
  return remembered.get(workflow);
}

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
