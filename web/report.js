/** Shows on this pack's nodes, in place, the report their last run gave. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { nodeAt, nodeLocated, openGraph, widgetOf } from "./graph.js";
import { recall, remember } from "./report_memory.js";
import { loadStyle, ReportView } from "./report_view.js";

/**
 * How a node type shows its report: as Markdown or as it stands; how high the box is at first, and how low it can be made.
 *
 * @typedef {{isMarkdown: boolean, height: number, least: number}} Manner
 * @type {Record<string, Manner>}
 */
const MANNERS = {
  LocksmithInspectLoRAKeys: { isMarkdown: true, height: 320, least: 100 },
  LocksmithLoadAndFixLoRA: { isMarkdown: false, height: 130, least: 80 },
  LocksmithApplyLoRA: { isMarkdown: false, height: 130, least: 80 },
  LocksmithMergeLoRAs: { isMarkdown: true, height: 320, least: 100 },
  LocksmithSaveLoRA: { isMarkdown: false, height: 110, least: 80 },
};
const WIDGET = "locksmith_report";
const LORA_NAME = "lora_name";

/**
 * What a node shows now; `heightBefore` is the node's height without the box.
 *
 * @typedef {{view: ReportView, widget: any, heightBefore: number}} Shown
 * @type {WeakMap<object, Shown>}
 */
const shownBy = new WeakMap();

/**
 * Show the report of an output on its node, unless it tells of another file than the node names now: ids alone do not prove that
 * an output is this node's, because a run may end while another workflow with the same ids is open.
 *
 * @param {any} node
 * @param {any} output
 * @returns {boolean} whether the output was this node's
 */
function show(node, output) {
  const manner = MANNERS[node?.comfyClass];
  const text = output?.text?.[0];
  if (!manner || typeof text !== "string" || !tellsOf(output, fileNamedBy(node))) return false;
  const shown = shownBy.get(node) ?? addBox(node, manner);
  if (shown.view.text !== text) shown.view.show(text, node.title);
  return true;
}

/**
 * @param {any} node
 * @param {Manner} manner
 * @returns {Shown}
 */
function addBox(node, manner) {
  const view = new ReportView(manner.isMarkdown, manner.least);
  const heightBefore = node.size[1];
  const options = { serialize: false, hideInPanel: true, getMinHeight: () => manner.least, getValue: () => "", setValue: () => {} };
  const widget = node.addDOMWidget(WIDGET, WIDGET, view.element, options);
  widget.serialize = false; // the option keeps it out of prompts, this out of workflows
  node.setSize([node.size[0], heightBefore + manner.height]);
  const shown = { view, widget, heightBefore };
  shownBy.set(node, shown);
  return shown;
}

/** @param {any} node */
function removeBox(node) {
  const shown = shownBy.get(node);
  if (!shown) return;
  shownBy.delete(node);
  node.removeWidget(shown.widget);
  node.setSize([node.size[0], shown.heightBefore]);
}

/**
 * The file a node names, or nothing if another node tells it.
 *
 * @param {any} node
 * @returns {string | undefined}
 */
function fileNamedBy(node) {
  const slot = node.findInputSlot(LORA_NAME);
  if (slot >= 0 && node.isInputConnected(slot)) return undefined;
  return widgetOf(node, LORA_NAME)?.value;
}

/**
 * @param {any} output
 * @param {string | undefined} name relative to a loras folder
 */
function tellsOf(output, name) {
  if (!name) return true;
  try {
    const [file, wanted] = [JSON.parse(output.report_json[0]).file, name].map((path) => path.replaceAll("\\", "/"));
    return file === wanted || file.endsWith(`/${wanted}`);
  } catch {
    return false; // no report of ours
  }
}

/** @param {CustomEvent<any>} event */
function onExecuted({ detail }) {
  const place = String(detail.display_node ?? detail.node);
  if (!show(nodeAt(place), detail.output)) return;
  remember({ graph: openGraph(), place, run: detail.prompt_id, node: String(detail.node) });
}

/** @param {CustomEvent<any>} event */
function onExecutionError({ detail }) {
  const node = nodeAt(String(detail.node_id));
  if (MANNERS[node?.comfyClass] && node.comfyClass === detail.node_type) removeBox(node); // it tells of an earlier run
}

async function restore() {
  const graph = openGraph();
  const outputs = await recall(graph);
  if (graph !== openGraph()) return;
  for (const [place, output] of outputs) {
    const node = nodeAt(place);
    if (node && !shownBy.has(node)) show(node, output);
  }
}

app.registerExtension({
  name: "loralocksmith.report",

  async setup() {
    await loadStyle();
    api.addEventListener("executed", onExecuted);
    api.addEventListener("execution_error", onExecutionError);
  },

  /** @param {any} node */
  nodeCreated(node) {
    if (!MANNERS[node.comfyClass]) return;
    const before = node.onSerialize;
    /** @this {any} @param {any} data */
    node.onSerialize = function (data) {
      before?.call(this, data);
      const shown = shownBy.get(this);
      if (shown && data.size) data.size[1] = shown.heightBefore; // a run leaves no trace in the workflow
    };
  },

  afterConfigureGraph() {
    void restore();
  },

  /**
   * After a change of tab, undo, or a job opened from the queue.
   *
   * @param {Record<string, unknown>} outputs by locator
   */
  onNodeOutputsUpdated(outputs) {
    for (const [locator, output] of Object.entries(outputs ?? {})) show(nodeLocated(locator), output);
  },
});
