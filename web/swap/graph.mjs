/** Puts one node in the place of another in a graph as it is saved, with its id, links and looks. */

import { Left } from "./loaders.mjs";

/**
 * A new node of a type, as it would be saved, and its widgets' names in the order of its values.
 *
 * @typedef {{saved: any, widgets: string[]}} Blank
 * @typedef {(type: string) => Blank | undefined} MakeBlank
 */

/**
 * What a node becomes: a type; the values of its widgets that are not the usual ones; the names its inputs and the slots its outputs
 * get, without those that have no like; the properties it gets (undefined: loses); its size, if that is known, or how much higher than
 * a new node it is; how much higher a panel will make it; nodes whose work it takes over; where its widgets are more than a new node's, their names; what it is where the
 * front end has no such node.
 *
 * @typedef {{type: string, values: Record<string, unknown>, inputs: Record<string, string>, outputs: Record<number, number>,
 *            properties?: Record<string, unknown>, size?: number[], height?: number, panel?: number, takenOver?: any[], widgets?: string[],
 *            blank?: Blank}} Change
 */

/** What stays as it is, whatever a node becomes. */
const KEPT = ["id", "pos", "flags", "order", "mode", "color", "bgcolor", "boxcolor", "shape"];
/** The properties that say which pack a node's type is from. */
export const PACK = ["cnr_id", "aux_id", "ver"];
const OF_TYPE = [...PACK, "Node name for S&R"];
/** The node's id at the end of a link that ends in the open, which only reroutes have. */
const OPEN_END = -1;
const LINK_PARTS = ["id", "origin_id", "origin_slot", "target_id", "target_slot", "type"];

/** A link, which is saved as a list in a workflow's graph and as a record in a subgraph. */
class Link {
  /** @param {any} saved */
  constructor(saved) {
    this.saved = saved;
  }

  /** @param {string} part */
  get(part) {
    return this.saved[this.#place(part)];
  }

  /**
   * @param {string} part
   * @param {number} value
   */
  set(part, value) {
    this.saved[this.#place(part)] = value;
  }

  /** @param {string} part */
  #place(part) {
    return Array.isArray(this.saved) ? LINK_PARTS.indexOf(part) : part;
  }
}

/**
 * The links into a node, those that end in the open before it too.
 *
 * @param {any} graph as saved
 * @param {any} node as saved
 */
export function linksInto(graph, node) {
  return linksOf(graph, "target_id", node);
}

/**
 * @param {any} graph as saved
 * @param {any} node as saved
 */
export function linksOutOf(graph, node) {
  return linksOf(graph, "origin_id", node);
}

/**
 * @param {any} graph
 * @param {string} end
 * @param {any} node
 */
function linksOf(graph, end, node) {
  const all = [...(graph.links ?? []), ...(graph.floatingLinks ?? [])].map((saved) => new Link(saved));
  return all.filter((link) => String(link.get(end)) === String(node.id));
}

/**
 * The node that a link comes from; undefined where it comes from outside of a subgraph.
 *
 * @param {any} graph as saved
 * @param {Link} link
 */
export function originOf(graph, link) {
  return graph.nodes.find((/** @type {any} */ node) => String(node.id) === String(link.get("origin_id")));
}

/**
 * Whether a link goes through reroutes; of a workflow's own links that is told apart from them.
 *
 * @param {any} graph as saved
 * @param {Link} link
 */
export function isRerouted(graph, link) {
  const extensions = graph.extra?.linkExtensions ?? [];
  return link.get("parentId") !== undefined || extensions.some((/** @type {any} */ { id }) => id === link.get("id"));
}

/**
 * The name of the input a link ends in.
 *
 * @param {any} node as saved
 * @param {Link} link
 * @returns {string}
 */
export function inputOf(node, link) {
  return node.inputs?.[link.get("target_slot")]?.name ?? "";
}

/**
 * Make a change, or nothing of it.
 *
 * @param {any} graph as saved; is changed
 * @param {any} node of it
 * @param {Change} change
 * @param {MakeBlank} makeBlank
 * @returns {any} the node as it is now
 * @throws {Left}
 */
export function changeNode(graph, node, change, makeBlank) {
  const blank = makeBlank(change.type) ?? change.blank;
  if (!blank) throw new Left("swapNoType", { type: change.type });
  const fresh = structuredClone(blank.saved);
  const into = linksInto(graph, node).filter((link) => !feeds(change.takenOver, link));
  const outOf = linksOutOf(graph, node);
  const slots = into.map((link) => slotFor(node, link, change, fresh));
  if (outOf.some((link) => !(link.get("origin_slot") in change.outputs))) throw new Left("swapOutput");
  into.forEach((link, i) => wireInput(node, link, fresh.inputs[slots[i]], slots[i]));
  for (const link of outOf) link.set("origin_slot", change.outputs[link.get("origin_slot")]);
  for (const [slot, output] of (fresh.outputs ?? []).entries()) wireOutput(outOf, slot, output, outputBefore(node, slot, change));
  setValues(fresh, change.widgets ?? blank.widgets, change.values);
  for (const part of KEPT) if (node[part] !== undefined) fresh[part] = node[part];
  if (node.showAdvanced) fresh.showAdvanced = true;
  fresh.properties = propertiesOf(node, fresh, change);
  fresh.size = change.size ?? sizeOf(node, fresh, change, makeBlank(node.type)?.saved);
  if (node.title && node.title !== node.type) fresh.title = node.title;
  else delete fresh.title;
  graph.nodes[graph.nodes.indexOf(node)] = fresh;
  for (const other of change.takenOver ?? []) remove(graph, other);
  return fresh;
}

/**
 * @param {any} fresh
 * @param {string[]} names of its widgets
 * @param {Record<string, unknown>} values that are not the usual ones
 */
function setValues(fresh, names, values) {
  fresh.widgets_values = names.map((name, i) => values[name] ?? fresh.widgets_values[i]);
  // Newer front ends save them by name too, and may read only that.
  if (fresh.widgets_values_named) fresh.widgets_values_named = Object.fromEntries(names.map((name, i) => [name, fresh.widgets_values[i]]));
}

/**
 * @param {any[] | undefined} nodes
 * @param {Link} link
 */
function feeds(nodes, link) {
  return nodes?.some((node) => String(node.id) === String(link.get("origin_id")));
}

/**
 * @param {any} node
 * @param {Link} link
 * @param {Change} change
 * @param {any} fresh
 * @returns {number} the slot of the fresh node that the link gets
 */
function slotFor(node, link, change, fresh) {
  const name = inputOf(node, link);
  const slot = fresh.inputs.findIndex((/** @type {any} */ input) => input.name === change.inputs[name]);
  if (slot < 0) throw new Left("swapInput", { name: name || link.get("target_slot") });
  return slot;
}

/**
 * @param {any} node
 * @param {Link} link
 * @param {any} input
 * @param {number} slot
 */
function wireInput(node, link, input, slot) {
  const before = node.inputs[link.get("target_slot")];
  if (before.label && before.label !== before.localized_name) input.label = before.label;
  if (link.get("origin_id") !== OPEN_END) input.link = link.get("id");
  link.set("target_slot", slot);
}

/**
 * @param {any} node
 * @param {number} slot of the fresh node
 * @param {Change} change
 */
function outputBefore(node, slot, change) {
  return node.outputs?.find((/** @type {any} */ _, /** @type {number} */ old) => change.outputs[old] === slot);
}

/**
 * @param {Link[]} links
 * @param {number} slot
 * @param {any} output
 * @param {any} before
 */
function wireOutput(links, slot, output, before) {
  const own = links.filter((link) => link.get("origin_slot") === slot && link.get("target_id") !== OPEN_END);
  const isUnset = !own.length && before?.links === null;
  output.links = isUnset ? null : own.map((link) => link.get("id"));
  if (before?.label) output.label = before.label;
}

/**
 * @param {any} node
 * @param {any} fresh
 * @param {Change} change
 */
function propertiesOf(node, fresh, change) {
  const properties = { ...node.properties };
  for (const name of OF_TYPE) delete properties[name];
  const merged = { ...properties, ...fresh.properties, ...change.properties };
  return Object.fromEntries(Object.entries(merged).filter(([, value]) => value !== undefined));
}

/**
 * The size of a node: what it was higher than it had to be it gives to what it shows more, to a panel too; without one it stays as much
 * higher, unless the change says how much. The front end widens what is too narrow.
 *
 * @param {any} node
 * @param {any} fresh
 * @param {Change} change
 * @param {any} before a new node of the type it had
 */
function sizeOf(node, fresh, change, before) {
  const [width, height] = [0, 1].map((axis) => Number(node.size?.[axis] ?? 0));
  const [widest, highest] = fresh.size;
  if (change.height !== undefined) return [width || widest, highest + change.height];
  if (change.panel) return [width || widest, Math.max(highest, height - change.panel)];
  return [width || widest, highest + (before ? Math.max(0, height - before.size[1]) : 0)];
}

/**
 * @param {any} graph
 * @param {any} node
 */
function remove(graph, node) {
  const gone = new Set([...linksInto(graph, node), ...linksOutOf(graph, node)].map((link) => link.saved));
  graph.nodes.splice(graph.nodes.indexOf(node), 1);
  for (const part of ["links", "floatingLinks"]) {
    if (graph[part]) graph[part] = graph[part].filter((/** @type {any} */ link) => !gone.has(link));
  }
}
