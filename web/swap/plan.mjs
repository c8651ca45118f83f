/** Decides which node a LoRA loader becomes, ours or the stock one. */

import { changeNode, inputOf, isRerouted, linksInto, linksOutOf } from "./graph.mjs";
import {
  canReplace, HOOK, Left, listedName, LOADER, makesHook, MULTIPLES, rowOfSingle, rowsOfMultiple, SINGLES, STACK, TO_STOCK, valuesOf,
} from "./loaders.mjs"; // prettier-ignore
import { makeRoom } from "./room.mjs";

/**
 * @typedef {import("./loaders.mjs").Direction} Direction
 * @typedef {import("./graph.mjs").Change} Change
 * @typedef {import("./graph.mjs").MakeBlank} MakeBlank
 * @typedef {import("./loaders.mjs").Row} Row
 */

/**
 * Which nodes are wanted: all, or those of graphs, by the graphs' ids and their own.
 *
 * @typedef {(graph: string, node: string) => boolean} Wanted
 */

/** The properties in which a node keeps what it needs to become again what it was. */
const FROM = "locksmith_from";
const SIZE = "locksmith_size";
const ON_UNMATCHED = "locksmith_on_unmatched";
/** The inputs that ours has in common with the stock loader. */
const SHARED = ["model", "clip", "lora_name", "strength_model", "strength_clip"];
/** The `mode` that does what the loaders of others do. */
const PATCH = "patch";
const ACTIVE = 0;
/** How much higher a node becomes when it shows what its file is, or what became of its files. */
const PANEL = /** @type {Record<string, number>} */ ({ [LOADER]: 80, [STACK]: 140, [HOOK]: 80 });
const FROM_HOST = /^LoraLoader(Bypass)?(ModelOnly)?$/;
/** The inputs of a hook, and stock's two nodes that make one. */
const OF_HOOK = ["lora_name", "strength_model", "strength_clip", "prev_hooks"];
const STOCK_HOOK = "CreateHookLora";
const STOCK_HOOK_MODEL_ONLY = "CreateHookLoraModelOnly";

/**
 * Replace nodes of a workflow.
 *
 * @param {any} workflow as saved; is changed
 * @param {Direction} direction
 * @param {Wanted} isWanted
 * @param {MakeBlank} makeBlank
 * @param {string[]} listed names of LoRA files
 * @returns {{done: {graph: string, node: string}[], left: {node: any, reason: Left}[]}}
 */
export function replaceIn(workflow, direction, isWanted, makeBlank, listed) {
  /** @type {ReturnType<typeof replaceIn>} */
  const result = { done: [], left: [] };
  for (const graph of [workflow, ...(workflow.definitions?.subgraphs ?? [])]) {
    /** @type {Parameters<typeof makeRoom>[1]} */
    const grown = new Map();
    for (const node of [...graph.nodes]) {
      const place = { graph: String(graph.id), node: String(node.id) };
      if (!canReplace(node.type, direction) || !isWanted(place.graph, place.node)) continue;
      try {
        const change = direction === TO_STOCK ? toStock(graph, node, makeBlank) : toOurs(graph, node, listed);
        const fresh = changeNode(graph, node, change, makeBlank);
        const height = Number(fresh.size[1]) - Number(node.size?.[1] ?? 0);
        grown.set(fresh, { height, width: Number(makeBlank(fresh.type)?.saved.size[0] ?? 0), panel: PANEL[fresh.type] ?? 0 });
        result.done.push(place);
      } catch (reason) {
        if (!(reason instanceof Left)) throw reason;
        result.left.push({ node, reason });
      }
    }
    makeRoom(graph, grown);
  }
  return result;
}

/**
 * @param {any} graph
 * @param {any} node
 * @param {string[]} listed
 * @returns {Change}
 * @throws {Left}
 */
function toOurs(graph, node, listed) {
  if (!(node.type in SINGLES)) return toStack(graph, node, listed);
  const row = rowOfSingle(node);
  if (makesHook(node.type)) return toOurHook(node, row);
  const sockets = { model: "model", clip: "clip" };
  if (!row.on) return { type: STACK, values: { loras: JSON.stringify([row]), mode: PATCH }, inputs: sockets, outputs: 2 };
  const { name: lora_name, strength: strength_model, strength_clip = row.strength } = row;
  return {
    type: LOADER,
    values: { lora_name, strength_model, strength_clip, mode: SINGLES[node.type].mode ?? PATCH, on_unmatched: node.properties?.[ON_UNMATCHED] },
    inputs: alike(SHARED),
    outputs: isModelOnly(node) ? 1 : 2,
    properties: { ...(FROM_HOST.test(node.type) ? { [FROM]: node.type, [SIZE]: node.size } : {}), [ON_UNMATCHED]: undefined },
  };
}

/**
 * @param {any} node
 * @param {Row} row
 * @returns {Change}
 */
function toOurHook(node, { name: lora_name, strength: strength_model, strength_clip = strength_model }) {
  return {
    type: HOOK,
    values: { lora_name, strength_model, strength_clip },
    inputs: alike(OF_HOOK),
    outputs: 1,
    properties: { [FROM]: node.type, [SIZE]: node.size },
  };
}

/**
 * @param {any} graph
 * @param {any} node
 * @param {MakeBlank} makeBlank
 * @returns {Change}
 */
function toStocksHook(graph, node, makeBlank) {
  const values = valuesOf(node, makeBlank(HOOK)?.widgets ?? []);
  const leavesClip = values.strength_clip === 0 && !usedOf(graph, node).includes("strength_clip");
  const wasModelOnly = node.properties?.[FROM] === STOCK_HOOK_MODEL_ONLY;
  return {
    type: leavesClip && wasModelOnly ? STOCK_HOOK_MODEL_ONLY : STOCK_HOOK,
    values,
    inputs: alike(OF_HOOK),
    outputs: 1,
    size: node.properties?.[SIZE],
    properties: { [FROM]: undefined, [SIZE]: undefined },
  };
}

/**
 * Inputs that keep their names.
 *
 * @param {string[]} names
 */
function alike(names) {
  return Object.fromEntries(names.map((name) => [name, name]));
}

/** @param {any} node */
function isModelOnly(node) {
  return !node.outputs?.[1] || node.outputs[1].type !== "CLIP";
}

/**
 * @param {any} graph
 * @param {any} node
 * @param {string[]} listed
 * @returns {Change}
 */
function toStack(graph, node, listed) {
  const { rows, nodes } = gather(graph, node);
  const files = rows.map((row) => ({ ...row, name: listedName(row.name, listed) }));
  const unknown = files.find(({ name }) => !listed.includes(name) && !/\.\w+$/.test(name));
  if (unknown) throw new Left("swapUnlisted", { name: unknown.name });
  const { clip = "clip" } = MULTIPLES[node.type];
  return {
    type: STACK,
    values: { loras: JSON.stringify(files), mode: PATCH },
    inputs: { model: "model", [clip]: "clip" },
    outputs: 2,
    takenOver: nodes,
  };
}

/**
 * The rows of a node together with those of the nodes that make lists for it alone.
 *
 * @param {any} graph
 * @param {any} node
 * @param {any[]} [seen]
 * @returns {{rows: Row[], nodes: any[]}} nodes: the makers of lists
 * @throws {Left}
 */
function gather(graph, node, seen = []) {
  const { takes, takesAfter } = MULTIPLES[node.type];
  const own = rowsOfMultiple(node);
  const link = linksInto(graph, node).find((each) => inputOf(node, each) === takes);
  if (!takes || !link) return { rows: own, nodes: [] };
  const maker = graph.nodes.find((/** @type {any} */ other) => String(other.id) === String(link.get("origin_id")));
  const isOwn = maker && MULTIPLES[maker.type]?.makes && !seen.includes(maker) && !isRerouted(graph, link) && servesOnly(graph, maker);
  if (!isOwn) throw new Left("swapShared");
  const before = gather(graph, maker, [...seen, maker]);
  return { rows: takesAfter ? [...own, ...before.rows] : [...before.rows, ...own], nodes: [maker, ...before.nodes] };
}

/**
 * Whether a maker of lists can go: it runs, nothing else takes what it makes, and nothing sets its widgets.
 *
 * @param {any} graph
 * @param {any} maker
 */
function servesOnly(graph, maker) {
  const { takes } = MULTIPLES[maker.type];
  const isSet = linksInto(graph, maker).some((link) => inputOf(maker, link) !== takes);
  return (maker.mode ?? ACTIVE) === ACTIVE && !isSet && linksOutOf(graph, maker).length === 1;
}

/**
 * @param {any} graph
 * @param {any} node
 * @param {MakeBlank} makeBlank
 * @returns {Change}
 */
function toStock(graph, node, makeBlank) {
  if (makesHook(node.type)) return toStocksHook(graph, node, makeBlank);
  const { on_unmatched, mode, ...values } = valuesOf(node, makeBlank(LOADER)?.widgets ?? []);
  const usesClip = usedOf(graph, node).some((name) => name === "clip" || name === "strength_clip");
  const isModelLoader = !usesClip && !String(node.properties?.[FROM]).match(/^LoraLoader(Bypass)?$/);
  return {
    type: `LoraLoader${mode === "bypass" ? "Bypass" : ""}${isModelLoader ? "ModelOnly" : ""}`,
    values,
    inputs: alike(SHARED),
    outputs: isModelLoader ? 1 : 2,
    size: node.properties?.[SIZE],
    properties: { [FROM]: undefined, [SIZE]: undefined, [ON_UNMATCHED]: on_unmatched === "error" ? on_unmatched : undefined },
  };
}

/**
 * The names of what is linked: inputs, and "clip" for the output of that name.
 *
 * @param {any} graph
 * @param {any} node
 */
function usedOf(graph, node) {
  const givesClip = linksOutOf(graph, node).some((link) => link.get("origin_slot") === 1);
  return [...linksInto(graph, node).map((link) => inputOf(node, link)), ...(givesClip ? ["clip"] : [])];
}
