/** Decides which node a LoRA loader becomes, ours or the stock one. */

import { changeNode, inputOf, isRerouted, linksInto, linksOutOf, originOf, PACK } from "./graph.mjs";
import { GROUPED, isOfRow, missingBlank, rowsOfGroup, widgetOf, widgetsFor } from "./grouped.mjs";
import { canReplace, FROM, HOOK, HOOK_STACK, Left, LOADER, makesHook, SINGLES, STACK, TO_STOCK } from "./loaders.mjs";
import { LISTS } from "./makers.mjs";
import { isOnNunchaku, whyLeft } from "./others.mjs";
import { makeRoom } from "./room.mjs";
import { giveBackPromoted } from "./promoted_back.mjs";
import { WRONG } from "../report/status.mjs";
import "../i18n/more.mjs";
import { heightOfRows, readRows } from "../stack/rows.mjs";
import { listedName, rowOfSingle, rowsOfMultiple, valuesOf } from "./values.mjs";

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

/**
 * What else is known: the names of LoRA files; the places, "<graph> <node>", of those that will tell what is wrong with their file;
 * what the nodes of subgraphs were set to when the workflow was opened; how wide nodes are at least when they are drawn.
 *
 * @typedef {{listed: string[], wrong: Set<string>, opened?: import("./promoted.mjs").Opened, leastWidth: number}} Known
 */

/** The properties in which a node keeps what it needs, beside its type, to become again what it was. */
const FROM_PACK = "locksmith_pack";
const SIZE = "locksmith_size";
const ON_UNMATCHED = "locksmith_on_unmatched";
/** The inputs that ours has in common with the stock loader. */
const SHARED = ["model", "clip", "lora_name", "strength_model", "strength_clip"];
/** The `mode` that does what the loaders of others do. */
const PATCH = "patch";
const ACTIVE = 0;
/** How much higher a node becomes when it shows what its file is, or what became of its files. */
export const PANEL = /** @type {Record<string, number>} */ ({ [LOADER]: 38, [STACK]: 38, [HOOK]: 38 });
const FROM_HOST = /^LoraLoader(Bypass)?(ModelOnly)?$/;
/** The inputs of a hook, and stock's two nodes that make one. */
const OF_HOOK = ["lora_name", "strength_model", "strength_clip", "prev_hooks"];
const STOCK_HOOK = "CreateHookLora";
const STOCK_HOOK_MODEL_ONLY = "CreateHookLoraModelOnly";
const [ONE_OUTPUT, BOTH_OUTPUTS] = [{ 0: 0 }, { 0: 0, 1: 1 }];
/** The slot of the stack's output of trigger words. */
const STACK_WORDS = 4;

/**
 * Replace nodes of a workflow.
 *
 * @param {any} workflow as saved; is changed
 * @param {Direction} direction
 * @param {Wanted} isWanted
 * @param {MakeBlank} makeBlank
 * @param {Known} known
 * @returns {{done: {graph: string, node: string}[], left: {node: any, reason: Left}[]}}
 */
export function replaceIn(workflow, direction, isWanted, makeBlank, { listed, wrong, opened = new Map(), leastWidth }) {
  /** @type {ReturnType<typeof replaceIn>} */
  const result = { done: [], left: [] };
  for (const graph of [workflow, ...(workflow.definitions?.subgraphs ?? [])]) {
    /** @type {Parameters<typeof makeRoom>[1]} */
    const grown = new Map();
    for (const node of [...graph.nodes]) {
      const place = { graph: String(graph.id), node: String(node.id) };
      if (!isWanted(place.graph, place.node)) continue;
      if (!canReplace(node, direction)) {
        const reason = direction === TO_STOCK ? undefined : whyLeft(graph, node, listed);
        if (reason) result.left.push({ node, reason });
        continue;
      }
      try {
        const change = direction === TO_STOCK ? toStock(graph, node, makeBlank) : toOurs(graph, node, listed);
        const tells = change.type !== STACK && wrong.has(`${place.graph} ${place.node}`); // a stack's rows tell it
        const panel = (PANEL[change.type] ?? 0) + (tells ? WRONG : 0);
        const fresh = changeNode(graph, node, { ...change, panel }, makeBlank);
        const height = Number(fresh.size[1]) - Number(node.size?.[1] ?? 0);
        grown.set(fresh, { height, width: Number(makeBlank(fresh.type)?.saved.size[0] ?? 0), panel });
        result.done.push(place);
      } catch (reason) {
        if (!(reason instanceof Left)) throw reason;
        result.left.push({ node, reason });
      }
    }
    makeRoom(graph, grown, leastWidth);
  }
  if (result.done.length) giveBackPromoted(workflow, opened);
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
  if (node.type in GROUPED) return groupToOurs(graph, node, listed);
  if (!(node.type in SINGLES)) return makesHook(node.type) ? toHookStack(node, listed) : toStack(graph, node, listed);
  const row = rowOfSingle(node);
  if (makesHook(node.type)) return toOurHook(node, row);
  if (!row.on) return stackOf([row], { model: "model", clip: "clip" }, BOTH_OUTPUTS);
  return {
    ...loaderOf(row, SINGLES[node.type].mode, node.properties?.[ON_UNMATCHED]),
    inputs: { ...alike(SHARED), ...SINGLES[node.type].calls },
    outputs: isModelOnly(node) ? ONE_OUTPUT : BOTH_OUTPUTS,
    properties: FROM_HOST.test(node.type) ? keptOf(node) : { [ON_UNMATCHED]: undefined },
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
    outputs: ONE_OUTPUT,
    properties: { [FROM]: node.type, [SIZE]: node.size },
  };
}

/**
 * @param {any} node that makes a hook of many LoRAs
 * @param {string[]} listed
 * @returns {Change}
 * @throws {Left}
 */
function toHookStack(node, listed) {
  const rows = listedRows(rowsOfMultiple(node), listed);
  return { ...stackOf(rows, alike(OF_HOOK), ONE_OUTPUT), type: HOOK_STACK };
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
    outputs: ONE_OUTPUT,
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

/**
 * @param {Row} row
 * @param {string} mode
 * @param {string} [on_unmatched]
 */
function loaderOf({ name: lora_name, strength: strength_model, strength_clip = strength_model }, mode = PATCH, on_unmatched) {
  return { type: LOADER, values: { lora_name, strength_model, strength_clip, mode, on_unmatched } };
}

/**
 * @param {Row[]} rows
 * @param {Change["inputs"]} inputs
 * @param {Change["outputs"]} outputs
 * @returns {Change}
 */
function stackOf(rows, inputs, outputs) {
  const height = heightOfRows(rows.length) - heightOfRows(0);
  return { type: STACK, values: { loras: JSON.stringify(rows), mode: PATCH }, inputs, outputs, height };
}

/**
 * The properties in which ours keeps what a loader of the host was.
 *
 * @param {any} node
 * @returns {Record<string, unknown>}
 */
function keptOf({ type, size, properties = {} }) {
  const pack = Object.fromEntries(PACK.filter((name) => name in properties).map((name) => [name, properties[name]]));
  return { [FROM]: type, [SIZE]: size, [FROM_PACK]: Object.keys(pack).length ? pack : undefined, [ON_UNMATCHED]: undefined };
}

/**
 * @param {any} node ours
 * @param {string} on_unmatched
 * @returns {Record<string, unknown>}
 */
function givenBack({ properties }, on_unmatched) {
  const kept = on_unmatched === "error" ? on_unmatched : undefined;
  return { ...properties?.[FROM_PACK], [FROM]: undefined, [SIZE]: undefined, [FROM_PACK]: undefined, [ON_UNMATCHED]: kept };
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
  const { clip = "clip", words, isForNunchaku } = LISTS[node.type];
  if (isForNunchaku && isOnNunchaku(graph, node)) throw new Left("swapOwnModel");
  const { rows, nodes } = gather(graph, node);
  const files = listedRows(rows, listed);
  const loaded = isModelOnly(node) ? ONE_OUTPUT : BOTH_OUTPUTS;
  const outputs = words === undefined ? loaded : { ...loaded, [words]: STACK_WORDS };
  return { ...stackOf(files, { model: "model", [clip]: "clip" }, outputs), takenOver: nodes };
}

/**
 * Rows with their files as they are listed.
 *
 * @param {Row[]} rows
 * @param {string[]} listed
 * @returns {Row[]}
 * @throws {Left} where it is not known which file is meant
 */
function listedRows(rows, listed) {
  const files = rows.map((row) => ({ ...row, name: listedName(row.name, listed) }));
  const unknown = files.find(({ name }) => !listed.includes(name) && !/\.\w+$/.test(name));
  if (unknown) throw new Left("swapUnlisted", { name: unknown.name });
  return files;
}

/**
 * A loader of the host with rows of widgets becomes a stack; or, where something sets the widgets of its only row, a loader, whose
 * widgets can be set too.
 *
 * @param {any} graph
 * @param {any} node
 * @param {string[]} listed
 * @returns {Change}
 */
function groupToOurs(graph, node, listed) {
  const { socket, slot } = GROUPED[node.type];
  const kept = { [ON_UNMATCHED]: node.properties?.[ON_UNMATCHED] };
  const stack = toStack(graph, node, listed);
  const change = { ...stack, values: { ...stack.values, ...kept }, inputs: { [socket]: socket }, outputs: { 0: slot }, properties: keptOf(node) };
  const isSet = linksInto(graph, node).some((link) => isOfRow(inputOf(node, link)));
  const [row, ...others] = rowsOfGroup(node) ?? [];
  if (!row) throw new Left("swapNoName");
  if (!isSet || !row?.on || others.length || socket !== "model") return change;
  const inputs = { model: "model", [widgetOf(row.number, "lora_name")]: "lora_name", [widgetOf(row.number, "strength")]: "strength_model" };
  return { ...loaderOf(row, PATCH, kept[ON_UNMATCHED]), inputs, outputs: ONE_OUTPUT, properties: keptOf(node) };
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
  const own = rowsOfMultiple(node);
  const lists = linksOfLists(graph, node).map((link) => {
    const maker = originOf(graph, link);
    const isKnown = maker && LISTS[maker.type]?.makes && !seen.includes(maker);
    if (!isKnown || isRerouted(graph, link) || !servesOnly(graph, maker)) throw new Left("swapShared");
    const { rows, nodes } = gather(graph, maker, [...seen, maker]);
    return { rows, nodes: [maker, ...nodes] };
  });
  const before = lists.flatMap(({ rows }) => rows);
  return {
    rows: LISTS[node.type].takesAfter ? [...own, ...before] : [...before, ...own],
    nodes: lists.flatMap(({ nodes }) => nodes),
  };
}

/**
 * The links by which a node takes lists of LoRAs, in the order in which it takes them.
 *
 * @param {any} graph
 * @param {any} node
 */
function linksOfLists(graph, node) {
  return linksInto(graph, node)
    .map((link) => ({ link, place: placeOfList(node, inputOf(node, link)) }))
    .filter(({ place }) => place >= 0)
    .sort((one, other) => one.place - other.place)
    .map(({ link }) => link);
}

/**
 * Which of the lists that a node takes an input is for; -1: none.
 *
 * @param {any} node
 * @param {string} input
 */
function placeOfList({ type }, input) {
  const { takes, takesAll } = LISTS[type];
  if (!takes || !(takesAll ? input.startsWith(takes) : input === takes)) return -1;
  const place = input.slice(takes.length);
  return ["", "_a", "_b"].includes(place) ? ["", "_a", "_b"].indexOf(place) : Number(place);
}

/**
 * Whether a maker of lists can go: it runs, nothing else takes what it makes, and nothing sets its widgets.
 *
 * @param {any} graph
 * @param {any} maker
 */
function servesOnly(graph, maker) {
  const isSet = linksInto(graph, maker).some((link) => placeOfList(maker, inputOf(maker, link)) < 0);
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
  const { on_unmatched, mode, layer_weights, ...values } = valuesOf(node, makeBlank(node.type)?.widgets ?? []);
  if (layer_weights) throw new Left("swapLayers");
  const used = usedOf(graph, node);
  const usesClip = used.some((name) => name === "clip" || name === "strength_clip");
  const kept = { size: node.properties?.[SIZE], properties: givenBack(node, on_unmatched) };
  if (node.properties?.[FROM] in GROUPED && (node.type === STACK || !usesClip)) return { ...toGroup(node, values, used, makeBlank), ...kept };
  const isModelLoader = !usesClip && !String(node.properties?.[FROM]).match(/^LoraLoader(Bypass)?$/);
  return {
    type: `LoraLoader${mode === "bypass" ? "Bypass" : ""}${isModelLoader ? "ModelOnly" : ""}`,
    values,
    inputs: alike(SHARED),
    outputs: isModelLoader ? ONE_OUTPUT : BOTH_OUTPUTS,
    ...kept,
  };
}

/**
 * @param {any} node ours, that was a loader of the host with rows of widgets
 * @param {Record<string, any>} values of its widgets
 * @param {string[]} used names of what is linked
 * @param {MakeBlank} makeBlank
 * @returns {Change}
 * @throws {Left}
 */
function toGroup(node, values, used, makeBlank) {
  const type = node.properties[FROM];
  const { socket, slot } = GROUPED[type];
  const { loras, lora_name: name, strength_model: strength } = values;
  /** @type {import("../stack/rows.mjs").Row[] | null} the rows as the stack keeps them */
  const rows = node.type === STACK ? readRows(loras) : [{ on: true, name, strength }];
  if (!rows) throw new Left("swapUnreadable");
  if (!rows.length) throw new Left("swapNoName");
  if (rows.some((row) => row.blocks)) throw new Left("swapLayers");
  const ofRow = { lora_name: widgetOf(0, "lora_name"), strength_model: widgetOf(0, "strength") };
  const isSet = Object.keys(ofRow).some((name) => used.includes(name));
  return {
    type,
    ...widgetsFor(rows, makeBlank(type)),
    inputs: { [socket]: socket, ...(node.type === STACK ? {} : ofRow) },
    outputs: { [slot]: 0 },
    blank: isSet ? undefined : missingBlank(type), // a missing node's widgets cannot be set
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
