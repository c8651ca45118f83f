/** Finds nodes of the open workflow, in subgraphs too. */

import { app } from "../../../scripts/app.js";

/** @returns {any} the open workflow's graph, in which all subgraphs are */
export function rootGraph() {
  return app.rootGraph;
}

/** @returns {string} the open workflow's id */
export function openGraph() {
  return String(rootGraph()?.id ?? "");
}

/**
 * @param {any} graph
 * @param {string} id
 */
export function nodeById(graph, id) {
  return graph?.getNodeById(id) ?? graph?.getNodeById(Number(id));
}

/**
 * The node an execution id stands for in the open workflow: "8", or "5:8" for node 8 in the subgraph that node 5 is.
 *
 * @param {string} place
 */
export function nodeAt(place) {
  let graph = rootGraph();
  let node;
  for (const id of place.split(":")) {
    node = nodeById(graph, id);
    graph = node?.subgraph;
  }
  return node;
}

/**
 * The node a locator stands for: "8", or a subgraph's id and the node's in it. The front end lists outputs by locators.
 *
 * @param {string} locator
 */
export function nodeLocated(locator) {
  const root = rootGraph();
  const [id, subgraph] = locator.split(":").reverse();
  return nodeById(subgraph ? root.subgraphs?.get(subgraph) : root, id);
}

/**
 * Every node of the open workflow, those in subgraphs once.
 *
 * @returns {Generator<any>}
 */
export function* allNodes() {
  const seen = new Set();
  const waiting = [rootGraph()];
  for (const graph of waiting) {
    if (!graph || seen.has(graph)) continue;
    seen.add(graph);
    for (const node of graph.nodes) {
      yield node;
      if (node.subgraph) waiting.push(node.subgraph);
    }
  }
}

/**
 * @param {any} node
 * @param {string} name
 */
export function widgetOf(node, name) {
  return node.widgets?.find((/** @type {any} */ widget) => widget.name === name);
}
