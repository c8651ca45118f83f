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

/** @type {Map<string, Opened>} by the workflows' ids */
const remembered = new Map();

/** @param {any} workflow as saved */
export function graphsOf(workflow) {
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
