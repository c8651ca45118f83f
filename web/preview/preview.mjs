/** Tells what a LoRA file is before anything runs, and which model file a node is wired to. */

import { allNodes, widgetOf } from "../shared/graph.mjs";
import { ask } from "../shared/server.mjs";
import { language } from "../i18n/words.mjs";

/**
 * A model file: the kind of folder it is listed in, such as "checkpoints", and its name there.
 *
 * @typedef {{folder: string, name: string}} ModelFile
 */

/**
 * What a node's LoRA comes to: the model's file; whether a CLIP is connected, "1" or "0", "" where the graph does not tell.
 *
 * @typedef {{model: ModelFile | null, clip: string}} Wiring
 */

/** The widgets loaders name a model with, and the folders they list. */
const MODEL_WIDGETS = /** @type {Record<string, string>} */ ({
  ckpt_name: "checkpoints",
  unet_name: "diffusion_models",
  diffusion_model_name: "diffusion_models",
  model_name: "diffusion_models",
});
const MUTED = 2;
const BYPASSED = 4;
const MAX_STEPS = 100;
const MAX_REMEMBERED = 64;
/** A file may be trained anew under its old name. */
const SECONDS_REMEMBERED = 30;

/** @type {Map<string, {until: number, answer: any}>} */
const remembered = new Map();

/**
 * What is in a LoRA file, and how much of it a model file takes: the brief answer of the route "file".
 *
 * @param {string} name relative to a loras folder
 * @param {Wiring} wiring
 * @param {AbortSignal} [signal] ends the waiting
 * @returns {Promise<any>}
 * @throws {import("../shared/server.mjs").Refusal} where the file is not listed, or the server does not answer
 */
export async function previewOf(name, wiring, signal) {
  const key = JSON.stringify([name, wiring, language()]);
  const known = remembered.get(key);
  if (known && known.until > Date.now()) return known.answer;
  const answer = await ask("file", questionOf(name, wiring), signal);
  remembered.delete(key);
  remembered.set(key, { until: Date.now() + SECONDS_REMEMBERED * 1000, answer });
  if (remembered.size > MAX_REMEMBERED) remembered.delete(/** @type {string} */ (remembered.keys().next().value));
  return answer;
}

/**
 * The route's question for a file.
 *
 * @param {string} name
 * @param {Wiring} wiring
 * @returns {Record<string, string>}
 */
export function questionOf(name, { model, clip }) {
  return model ? { name, model_folder: model.folder, model: model.name, clip } : { name };
}

/** Ask anew from now on, because files may have changed. */
export function forgetPreviews() {
  remembered.clear();
}

/**
 * The model file that reaches a node's `model` input, where the graph tells it: through every node that takes one model and gives
 * one, reroutes and subgraphs.
 *
 * @param {any} node
 * @returns {ModelFile | null}
 */
export function modelWiredTo(node) {
  let at = node;
  let slot = node.findInputSlot("model");
  for (let step = 0; at && slot >= 0 && step < MAX_STEPS; step++) {
    at = sourceOf(at, slot);
    const slots = at ? modelInputs(at) : [];
    if (at && !slots.length) return at.mode === BYPASSED ? null : modelFileOf(at);
    slot = slots.length === 1 ? slots[0] : -1;
  }
  return null;
}

/**
 * @param {any} node
 * @returns {Wiring}
 */
export function wiringOf(node) {
  return { model: modelWiredTo(node), clip: hasClip(node, node.findInputSlot("clip")) };
}

/**
 * @param {any} node
 * @param {number} slot
 * @returns {string}
 */
function hasClip(node, slot) {
  if (slot < 0) return "";
  const link = linkInto(node, slot);
  if (!link || !isBoundary(link)) return link ? "1" : "0";
  const host = hostOf(node.graph);
  return host ? hasClip(host, link.origin_slot) : "";
}

/**
 * The text a node's widget stands at, or "" where something tells it that is known only in a run.
 *
 * @param {any} node
 * @param {string} name of the widget
 * @returns {string}
 */
export function textOf(node, name) {
  const widget = widgetOf(node, name);
  const slot = node.findInputSlot(name);
  const link = slot >= 0 ? linkInto(node, slot) : null;
  if (!link) return typeof widget?.value === "string" ? widget.value : "";
  if (!isBoundary(link)) {
    const origin = node.graph.getNodeById(link.origin_id);
    return origin?.isVirtualNode && typeof origin.widgets?.[0]?.value === "string" ? origin.widgets[0].value : "";
  }
  const host = hostOf(node.graph);
  return host ? textOf(host, host.inputs[link.origin_slot]?.name) : "";
}

/** @param {string} name of a widget with which loaders name a model */
export function isModelWidget(name) {
  return name in MODEL_WIDGETS;
}

/**
 * @param {any} loader
 * @returns {ModelFile | null}
 */
function modelFileOf(loader) {
  for (const [widget, folder] of Object.entries(MODEL_WIDGETS)) {
    const name = textOf(loader, widget);
    if (name) return { folder, name };
  }
  return null;
}

/**
 * The slots through which models come into a node; a reroute's only slot is one.
 *
 * @param {any} node
 * @returns {number[]}
 */
function modelInputs(node) {
  const inputs = /** @type {any[]} */ (node.inputs ?? []);
  if (node.isVirtualNode && inputs.length === 1) return [0];
  return inputs.flatMap(({ type }, slot) => (type === "MODEL" ? [slot] : []));
}

/**
 * The node whose output comes into a slot, where it is in a subgraph too; a muted one gives nothing.
 *
 * @param {any} node
 * @param {number} slot
 * @returns {any}
 */
function sourceOf(node, slot) {
  const link = linkInto(node, slot);
  if (!link) return null;
  if (isBoundary(link)) {
    const host = hostOf(node.graph);
    return host ? sourceOf(host, link.origin_slot) : null;
  }
  return giverOf(node.graph.getNodeById(link.origin_id), link.origin_slot);
}

/**
 * The node that makes what an output gives: inside of a subgraph, or where a pair of nodes reaches over a distance.
 *
 * @param {any} node
 * @param {number} slot of the output
 * @returns {any}
 */
function giverOf(node, slot) {
  if (!node || node.mode === MUTED) return null;
  if (node.subgraph) {
    const link = node.subgraph.outputNode.slots[slot]?.getLinks()[0];
    if (!link) return null;
    if (isBoundary(link)) return sourceOf(node, link.origin_slot);
    return giverOf(node.subgraph.getNodeById(link.origin_id), link.origin_slot);
  }
  const far = node.isVirtualNode ? node.resolveVirtualOutput?.(slot) : undefined;
  return far ? giverOf(far.node, far.slot) : node;
}

/**
 * @param {any} node
 * @param {number} slot
 * @returns {any}
 */
function linkInto(node, slot) {
  if (!node.graph) return null;
  if (!node.subgraph) return node.getInputLink(slot);
  for (const link of node.graph.links.values()) {
    if (String(link.target_id) === String(node.id) && link.target_slot === slot) return link;
  }
  return null;
}

/** @param {any} link that may come from outside of its subgraph */
function isBoundary(link) {
  return Number(link.origin_id) === -10;
}

/**
 * The node that stands for a subgraph; nothing where several do.
 *
 * @param {any} graph
 * @returns {any}
 */
function hostOf(graph) {
  const hosts = [...allNodes()].filter((node) => node.subgraph === graph);
  return hosts.length === 1 ? hosts[0] : null;
}
