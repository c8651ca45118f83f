/** Shows on a node what the chosen LoRA file is, before anything runs, and warns where it does not fit the model wired to it. */

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { allNodes, widgetOf } from "../shared/graph.mjs";
import { listedAs } from "../shared/names.mjs";
import { givePanel, panelOf } from "../shared/panel.mjs";
import { forgetPreviews, isModelWidget, previewOf, textOf, wiringOf } from "./preview.mjs";
import { StatusView } from "../report/status.mjs";
import { whenServerIsBack } from "../shared/server.mjs";

const PREVIEWED = new Set([
  "LocksmithLoadAndFixLoRA",
  "LocksmithCreateHookLoRA",
  "LocksmithInspectLoRAKeys",
  "LocksmithSaveLoRA",
  "LocksmithRepairedLoRAPath",
]);
const LORA_NAME = "lora_name";
const WAIT = 80; // milliseconds, in which a person scrolls on through the list

/**
 * What was asked for a node last.
 *
 * @typedef {{key: string, name: string, stop: AbortController}} Asked
 * @type {WeakMap<object, Asked>}
 */
const asked = new WeakMap();
let waiting = 0;

/** Look at all nodes soon. */
function lookSoon() {
  clearTimeout(waiting);
  waiting = window.setTimeout(() => {
    for (const node of allNodes()) if (PREVIEWED.has(node.comfyClass)) look(node);
  }, WAIT);
}

/**
 * Ask for what a node names now, if that is not what was asked last.
 *
 * @param {any} node
 */
function look(node) {
  const name = nameOn(node);
  const wiring = wiringOf(node);
  const key = JSON.stringify([name, wiring]);
  const last = asked.get(node);
  if (last?.key === key) return;
  last?.stop.abort();
  const stop = new AbortController();
  asked.set(node, { key, name, stop });
  if (last && last.name !== name) clear(node, name);
  if (name) void fill(node, name, wiring, stop.signal);
}

/**
 * The file a node names, as its list has it; "" where it does not: asking for others would only be refused.
 *
 * @param {any} node
 */
function nameOn(node) {
  const name = textOf(node, LORA_NAME);
  const values = widgetOf(node, LORA_NAME)?.options?.values;
  if (!name.includes(".")) return "";
  return Array.isArray(values) ? listedAs(name, values) : name;
}

/**
 * @param {any} node
 * @param {string} name
 * @param {import("./preview.mjs").Wiring} wiring
 * @param {AbortSignal} signal
 */
async function fill(node, name, wiring, signal) {
  /** @type {any} */
  let answer;
  let fault = "";
  try {
    answer = await previewOf(name, wiring, signal);
  } catch (reason) {
    if (!signal.aborted) asked.delete(node); // it may be told when it is asked again
    fault = reason instanceof Error ? reason.message : String(reason);
  }
  const shown = panelOf(node)?.view;
  if (signal.aborted || !node.graph || (shown?.isReport && !(shown instanceof StatusView))) return;
  const view = statusOf(node);
  if (answer) view.showFile(node.title, name, answer);
  else if (!view.isReport) view.showRefusal(fault);
  showStatus(node, view);
}

/**
 * @param {any} node
 * @returns {StatusView} the one it shows, or a new one
 */
export function statusOf(node) {
  const view = panelOf(node)?.view;
  return view instanceof StatusView ? view : new StatusView(() => wiringOf(node), () => textOf(node, "layer_weights"));
}

/**
 * @param {any} node
 * @param {StatusView} view
 */
export function showStatus(node, view) {
  givePanel(node).show(view, view.height, view.height);
}

/**
 * Take away what is shown of another file.
 *
 * @param {any} node
 * @param {string} name of the file that is chosen now
 */
function clear(node, name) {
  const shown = panelOf(node)?.view;
  if (!shown || shown.file === name) return;
  const view = statusOf(node);
  view.clear();
  showStatus(node, view);
}

/**
 * Show on a node why its last run failed, in place of an earlier run's report; what its file is stays, or comes.
 *
 * @param {any} node
 * @param {string} message "" where it did not fail, or was changed since
 */
export function tellFault(node, message) {
  const before = panelOf(node)?.view;
  if (!message && !before?.hasFault) return;
  const view = statusOf(node);
  view.showFault(message, node.title);
  if (message || PREVIEWED.has(node.comfyClass)) showStatus(node, view);
  else panelOf(node)?.remove();
  if (before === view && view.answer) return;
  asked.delete(node); // what the file is was gone
  lookSoon();
}

/**
 * Hear of every value a person gives a widget, in both of the front end's ways to draw nodes.
 *
 * @param {any} widget
 */
function watch(widget) {
  const before = widget.callback;
  /** @this {any} @param {...any} values */
  widget.callback = function (...values) {
    lookSoon();
    return before?.apply(this, values);
  };
}

/** Have the host call what stands here. */
export function register() {
  app.registerExtension({
    name: "loralocksmith.preview",

    setup() {
      api.addEventListener("graphChanged", lookSoon);
      whenServerIsBack(lookSoon);
    },

    /** @param {any} node */
    nodeCreated(node) {
      const ours = PREVIEWED.has(node.comfyClass);
      for (const widget of node.widgets ?? []) if (isModelWidget(widget.name) || (ours && widget.name === LORA_NAME)) watch(widget);
      if (ours) lookSoon();
    },

    afterConfigureGraph: lookSoon,

    /** After the lists of files were read anew. */
    refreshComboInNodes() {
      forgetPreviews();
      for (const node of allNodes()) asked.delete(node);
      lookSoon();
    },
  });
}
