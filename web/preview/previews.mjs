/** Shows on a node what the chosen LoRA file is, before anything runs, and warns where it does not fit the model wired to it. */

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { allNodes, widgetOf } from "../shared/graph.mjs";
import { listedAs } from "../shared/names.mjs";
import { givePanel, panelOf } from "../shared/panel.mjs";
import { forgetPreviews, isModelWidget, modelWiredTo, previewOf, textOf } from "./preview.mjs";
import { Preview } from "./view.mjs";
import { ReportView } from "../report/view.mjs";
import { whenServerIsBack } from "../shared/server.mjs";

const PREVIEWED = new Set([
  "LocksmithLoadAndFixLoRA",
  "LocksmithCreateHookLoRA",
  "LocksmithInspectLoRAKeys",
  "LocksmithSaveLoRA",
  "LocksmithRepairedLoRAPath",
]);
const LORA_NAME = "lora_name";
const HEIGHT = 76; // as much as the verdict takes after a run
const HEIGHT_OF_FAULT = 124;
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
  const model = name ? modelWiredTo(node) : null;
  const key = JSON.stringify([name, model]);
  const last = asked.get(node);
  if (last?.key === key) return;
  last?.stop.abort();
  const stop = new AbortController();
  asked.set(node, { key, name, stop });
  if (last && last.name !== name) clear(node, name);
  if (name) void fill(node, name, model, stop.signal);
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
 * @param {import("./preview.mjs").ModelFile | null} model
 * @param {AbortSignal} signal
 */
async function fill(node, name, model, signal) {
  /** @type {any} */
  let answer;
  let fault = "";
  try {
    answer = await previewOf(name, model, signal);
  } catch (reason) {
    if (!signal.aborted) asked.delete(node); // it may be told when it is asked again
    fault = reason instanceof Error ? reason.message : String(reason);
  }
  if (signal.aborted || !node.graph || panelOf(node)?.view instanceof ReportView) return;
  const panel = givePanel(node);
  const view = panel.view instanceof Preview ? panel.view : new Preview();
  panel.show(view, view.hasFault ? HEIGHT_OF_FAULT : HEIGHT, HEIGHT);
  view.name(node.title);
  if (answer) view.show(name, answer);
  else view.tellFit("", fault);
}

/**
 * Take away what is shown of another file.
 *
 * @param {any} node
 * @param {string} name of the file that is chosen now
 */
function clear(node, name) {
  const panel = panelOf(node);
  if (panel?.view instanceof Preview) panel.view.clear();
  else if (panel?.view && panel.view.file !== name) panel.show(new Preview(), HEIGHT, HEIGHT);
}

/**
 * Show on a node why its last run failed, in place of an earlier run's report; what its file is stays, or comes.
 *
 * @param {any} node
 * @param {string} message "" where it did not fail, or was changed since
 */
export function tellFault(node, message) {
  const shown = panelOf(node)?.view;
  const before = shown instanceof Preview ? shown : undefined;
  if (!message && !before?.hasFault) return;
  const [panel, view] = [givePanel(node), before ?? new Preview()];
  view.tellFault(message);
  view.name(node.title);
  if (message || PREVIEWED.has(node.comfyClass)) panel.show(view, message ? HEIGHT_OF_FAULT : HEIGHT, HEIGHT);
  else panel.remove();
  if (before) return;
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
