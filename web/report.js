/** Shows on this pack's nodes, in place, the report their last run gave. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { adoptStyle } from "./dom.js";
import { nodeAt, nodeLocated, openGraph } from "./graph.js";
import { drawMark } from "./mark.js";
import { givePanel, panelOf, saveWithoutPanel } from "./panel.js";
import { textOf } from "./preview.js";
import { recall, remember } from "./report_memory.js";
import { ReportView } from "./report_view.js";

const LORA_NAME = "lora_name";

/**
 * How a node type shows its report; how high the panel is at first, and how low it can be made.
 *
 * @typedef {{kind: import("./report_view.js").Body, height: number, least: number}} Manner
 * @type {Record<string, Manner>}
 */
const MANNERS = {
  LocksmithInspectLoRAKeys: { kind: "markdown", height: 320, least: 108 },
  LocksmithLoadAndFixLoRA: { kind: "verdict", height: 76, least: 76 },
  LocksmithLoRAStack: { kind: "text", height: 136, least: 86 },
  LocksmithApplyLoRA: { kind: "verdict", height: 76, least: 76 },
  LocksmithMergeLoRAs: { kind: "markdown", height: 320, least: 108 },
  LocksmithSaveLoRA: { kind: "text", height: 116, least: 86 },
};

/**
 * The report a node shows now.
 *
 * @param {any} node
 * @returns {ReportView | undefined}
 */
function reportOf(node) {
  const view = panelOf(node)?.view;
  return view instanceof ReportView ? view : undefined;
}

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
  const name = manner ? textOf(node, LORA_NAME) : "";
  if (!manner || typeof text !== "string" || !tellsOf(output, name)) return false;
  const view = reportOf(node) ?? new ReportView(manner.kind);
  if (view.text !== text) view.show(output, node.title, name);
  givePanel(node).show(view, manner.height, manner.least);
  return true;
}

/**
 * @param {any} output
 * @param {string} name relative to a loras folder; "" where the graph does not tell it
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

/**
 * The server sends nothing for a node that needs no run, but what it sent before holds again.
 *
 * @param {CustomEvent<any>} event
 */
function onCached({ detail }) {
  const isBare = (/** @type {string} */ place) => MANNERS[nodeAt(String(place))?.comfyClass] && !reportOf(nodeAt(String(place)));
  if (detail.nodes?.some(isBare)) void restore();
}

/** @param {CustomEvent<any>} event */
function onExecutionError({ detail }) {
  const node = nodeAt(String(detail.node_id));
  if (MANNERS[node?.comfyClass] && node.comfyClass === detail.node_type) panelOf(node)?.remove(); // it tells of an earlier run
}

async function restore() {
  const graph = openGraph();
  const outputs = await recall(graph);
  if (graph !== openGraph()) return;
  for (const [place, output] of outputs) {
    const node = nodeAt(place);
    if (node && !reportOf(node)) show(node, output);
  }
}

app.registerExtension({
  name: "loralocksmith.report",

  async setup() {
    await adoptStyle("./report.css");
    api.addEventListener("executed", onExecuted);
    api.addEventListener("execution_cached", onCached);
    api.addEventListener("execution_error", onExecutionError);
  },

  /** @param {any} node */
  nodeCreated(node) {
    if (!MANNERS[node.comfyClass]) return;
    saveWithoutPanel(node);
    drawMark(node, () => reportOf(node)?.outcome ?? null);
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
