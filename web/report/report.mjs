/** Shows on this pack's nodes, in place, the report their last run gave. */

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { adoptStyle } from "../shared/dom.mjs";
import { forgetFault, noteFault, standingFaults } from "./fault.mjs";
import { allNodes, nodeAt, nodeLocated, openGraph, widgetOf } from "../shared/graph.mjs";
import { drawMark } from "./mark.mjs";
import { isNameOf } from "../shared/names.mjs";
import { givePanel, panelOf, saveWithoutPanel } from "../shared/panel.mjs";
import { textOf } from "../preview/preview.mjs";
import { tellFault } from "../preview/previews.mjs";
import { recall, remember } from "./memory.mjs";
import { ReportView } from "./view.mjs";
import { whenServerIsBack } from "../shared/server.mjs";
import { tellStack } from "../stack/stack.mjs";

const LORA_NAME = "lora_name";
const HEIGHT_OF_CAUTION = 24; // above the verdict
const ASK_AGAIN = 200; // milliseconds between two looks at what the host has refused
const MAX_ASKED = 300;

/**
 * How a node type shows its report; how high the panel is at first, and how low it can be made.
 *
 * @typedef {{kind: import("./view.mjs").Body, height: number, least: number}} Manner
 * @type {Record<string, Manner>}
 */
const MANNERS = {
  LocksmithInspectLoRAKeys: { kind: "markdown", height: 320, least: 108 },
  LocksmithLoadAndFixLoRA: { kind: "verdict", height: 76, least: 76 },
  LocksmithLoRAStack: { kind: "text", height: 136, least: 86 },
  LocksmithCreateHookLoRA: { kind: "verdict", height: 76, least: 76 }, // these two tell of faults alone
  LocksmithCreateHookLoRAStack: { kind: "text", height: 136, least: 86 },
  LocksmithApplyLoRA: { kind: "verdict", height: 76, least: 76 },
  LocksmithMergeLoRAs: { kind: "markdown", height: 320, least: 108 },
  LocksmithExtractLoRA: { kind: "text", height: 190, least: 86 },
  LocksmithSaveLoRA: { kind: "text", height: 190, least: 86 }, // its verdict holds the path of a file
  LocksmithRepairedLoRAPath: { kind: "text", height: 190, least: 86 },
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
  if (!manner || typeof text !== "string" || standingFaults().has(node)) return false;
  const file = fileToldOf(node, output);
  if (file === null) return false;
  const view = reportOf(node) ?? new ReportView(manner.kind);
  if (view.text !== text || view.file !== file) view.show(output, node.title, file);
  const caution = view.outcome?.cautions.length && manner.kind === "verdict" ? HEIGHT_OF_CAUTION : 0;
  givePanel(node).show(view, manner.height + caution, manner.least + caution);
  tellStack(node, output);
  return true;
}

/**
 * The file an output tells of, as the server lists it; "" for a node that names none; null where it is not the one the node names now.
 *
 * @param {any} node
 * @param {any} output
 * @returns {string | null}
 */
function fileToldOf(node, output) {
  const widget = widgetOf(node, LORA_NAME);
  if (!widget) return "";
  const name = textOf(node, LORA_NAME);
  const listed = Array.isArray(widget.options?.values) ? widget.options.values : [];
  try {
    const { file } = JSON.parse(output.report_json[0]);
    return !name || isNameOf(name, file, listed) ? file : null;
  } catch {
    return null; // no report of ours
  }
}

/** @param {CustomEvent<any>} event */
function onExecuted({ detail }) {
  const place = String(detail.display_node ?? detail.node);
  if (detail.output?.text) forgetFault(place);
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
  const place = String(detail.node_id);
  const node = nodeAt(place);
  if (!MANNERS[node?.comfyClass] || node.comfyClass !== detail.node_type) return;
  noteFault(place, String(detail.exception_message || detail.exception_type).trim());
  showFaults();
}

/** Show on the nodes that failed why they did, and no more on those that were changed since. */
function showFaults() {
  const faults = standingFaults();
  for (const node of allNodes()) if (MANNERS[node.comfyClass]) tellFault(node, faults.get(node) ?? "");
}

let asking = 0;

/** The host tells of no event when the server refuses a workflow, only what is wrong with which node. */
function onQueueing() {
  clearInterval(asking);
  let asked = 0;
  asking = window.setInterval(() => {
    const errors = /** @type {any} */ (app).lastNodeErrors;
    if (errors || (asked += 1) > MAX_ASKED) clearInterval(asking);
    for (const [place, { errors: faults }] of /** @type {[string, any][]} */ (Object.entries(errors ?? {}))) {
      const told = new Set(faults.map((/** @type {any} */ { details, message }) => details || message));
      if (MANNERS[nodeAt(place)?.comfyClass]) noteFault(place, [...told].join("\n"));
    }
    if (errors) showFaults();
  }, ASK_AGAIN);
}

async function restore() {
  const graph = openGraph();
  const outputs = await recall(graph);
  if (graph !== openGraph()) return;
  for (const [place, output] of outputs) {
    const node = nodeAt(place);
    if (node && !reportOf(node)) show(node, output);
  }
  showFaults();
}

/** Have the host call what stands here. */
export function register() {
  app.registerExtension({
    name: "loralocksmith.report",

    async setup() {
      api.addEventListener("executed", onExecuted);
      api.addEventListener("execution_cached", onCached);
      api.addEventListener("execution_error", onExecutionError);
      api.addEventListener("promptQueueing", onQueueing);
      api.addEventListener("promptQueued", () => clearInterval(asking));
      api.addEventListener("graphChanged", showFaults);
      whenServerIsBack(() => void restore());
      await adoptStyle("./report.css", import.meta.url);
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
}
