/** Replaces LoRA loaders in the open workflow by ours, and ours by the stock one, as one step that can be undone. */

import { app } from "../../../scripts/app.js";
import { nodeById, openGraph, rootGraph, widgetOf } from "../shared/graph.mjs";
import { HOOK, HOOK_STACK, LOADER, STACK, TO_STOCK } from "./loaders.mjs";
import { replaceIn } from "./plan.mjs";
import { promotedIn } from "./promoted.mjs";
import { troubled } from "./trouble.mjs";
import { say } from "../i18n/words.mjs";

/** @typedef {import("./loaders.mjs").Direction} Direction */

const SECONDS_SHOWN = { success: 5, info: 10, warn: 15 };
const MAX_TOLD = 5;
const FRAMES = 3;
const LONGEST_FRAME = 100; // milliseconds
/** How much higher Vue nodes are drawn than a new node says, in the graph's units; their panel is not in it. A test measures it. */
export const HIGHER_IN_VUE = /** @type {Record<string, number>} */ ({
  [LOADER]: 56,
  [STACK]: 36,
  [HOOK]: 32,
  [HOOK_STACK]: 12,
  LoraLoader: 12,
  LoraLoaderModelOnly: 8,
  LoraLoaderBypass: 36,
  LoraLoaderBypassModelOnly: 32,
  CreateHookLora: 36,
  CreateHookLoraModelOnly: 32,
});
const WIDTH_IN_VUE = 225; // at least

/**
 * Replace nodes, and tell how many were.
 *
 * @param {Direction} direction
 * @param {any[]} [chosen] nodes; without them all
 */
export async function replace(direction, chosen) {
  const tracker = /** @type {any} */ (app.extensionManager).workflow.activeWorkflow?.changeTracker;
  if (!tracker) return;
  const isWanted = chosen ? wants(chosen) : () => true;
  const listed = listedFiles();
  const wrong = direction === TO_STOCK ? new Set() : await troubled(isWanted, listed);
  const workflow = saved(rootGraph());
  const known = { listed, wrong, opened: promotedIn(openGraph()), leastWidth: isVue() ? WIDTH_IN_VUE : 0 };
  const { done, left } = replaceIn(workflow, direction, isWanted, maker(), known);
  if (done.length) await put(workflow, tracker);
  if (done.length && chosen) select(done);
  tell(direction, done.length, left);
}

/**
 * Put a changed workflow in the place of the open one, the way the front end's own undo does it.
 *
 * @param {any} workflow
 * @param {any} tracker of its changes
 */
async function put(workflow, tracker) {
  tracker.beforeChange();
  tracker.afterChange(); // what was changed before is a step of its own
  tracker.redoQueue.length = 0;
  await tracker.updateState([workflow], tracker.undoQueue);
  const steps = tracker.undoQueue.length;
  await drawn();
  // Nodes grow until they are drawn. That is no step of its own.
  if (tracker.undoQueue.length === steps && openGraph() === workflow.id) tracker.activeState = saved(rootGraph());
}

/** Until the page was drawn a few times; a page in the background is not drawn at all. */
async function drawn() {
  for (let i = 0; i < FRAMES; i++) {
    await new Promise((done) => {
      requestAnimationFrame(done);
      setTimeout(done, LONGEST_FRAME);
    });
  }
}

/** @param {any} graph */
function saved(graph) {
  return JSON.parse(JSON.stringify(graph.serialize()));
}

/**
 * @param {any[]} nodes
 * @returns {import("./plan.mjs").Wanted}
 */
function wants(nodes) {
  const places = new Set(nodes.map((node) => `${node.graph?.id} ${node.id}`));
  return (graph, node) => places.has(`${graph} ${node}`);
}

/**
 * Makes new nodes that are in no graph; of each type one.
 *
 * @returns {import("./graph.mjs").MakeBlank}
 */
function maker() {
  /** @type {Map<string, import("./graph.mjs").Blank | undefined>} */
  const made = new Map();
  return (type) => {
    if (!made.has(type)) made.set(type, makeBlank(type));
    return made.get(type);
  };
}

/** @param {string} type */
function makeBlank(type) {
  const node = makeNode(type);
  if (!node) return undefined;
  const widgets = (node.widgets ?? []).filter((/** @type {any} */ widget) => widget.serialize !== false);
  const blank = { saved: saved(node), widgets: widgets.map((/** @type {any} */ widget) => widget.name) };
  node.onRemoved?.();
  if (isVue()) blank.saved.size[1] += HIGHER_IN_VUE[type] ?? 0;
  return blank;
}

function isVue() {
  return Boolean(globalThis.LiteGraph?.vueNodesMode);
}

/** @param {string} type */
function makeNode(type) {
  const { LiteGraph } = /** @type {any} */ (globalThis);
  return type in LiteGraph.registered_node_types ? LiteGraph.createNode(type) : undefined;
}

/** @returns {string[]} the LoRA files the server has */
function listedFiles() {
  const node = makeNode(LOADER);
  const values = node && widgetOf(node, "lora_name")?.options?.values;
  node?.onRemoved?.();
  return (typeof values === "function" ? values() : values) ?? [];
}

/** @param {{graph: string, node: string}[]} places */
function select(places) {
  const shown = app.canvas.graph;
  const nodes = places.filter(({ graph }) => graph === String(shown?.id)).map(({ node }) => nodeById(shown, node));
  if (nodes.length) app.canvas.selectItems(nodes);
}

/**
 * @param {Direction} direction
 * @param {number} count of nodes replaced
 * @param {{node: any, reason: import("./loaders.mjs").Left}[]} left
 */
function tell(direction, count, left) {
  if (count) toast("success", say("swapDone", { count }), say("swapUndo"));
  if (left.length) {
    const lines = left.slice(0, MAX_TOLD).map(({ node, reason }) => `${node.title || node.type}: ${say(reason.key, reason.fill)}`);
    if (left.length > MAX_TOLD) lines.push(say("swapMore", { count: left.length - MAX_TOLD }));
    toast("warn", say("swapLeft", { count: left.length }), lines.join("\n"));
  }
  if (!count && !left.length) toast("info", say(direction === "ours" ? "swapNothing" : "swapNothingBack"));
}

/**
 * @param {"success" | "info" | "warn"} severity
 * @param {string} summary
 * @param {string} [detail]
 */
function toast(severity, summary, detail) {
  app.extensionManager.toast.add({ severity, summary, detail, life: SECONDS_SHOWN[severity] * 1000 });
}
