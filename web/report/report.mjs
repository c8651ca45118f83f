/** Shows on this pack's nodes, in place, the report their last run gave. */

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { adoptStyle } from "../shared/dom.mjs";
import { forgetFault, noteFault, standingFaults, translateFault } from "./fault.mjs";
import { allNodes, nodeAt, nodeLocated, openGraph, widgetOf } from "../shared/graph.mjs";
import { drawMark, markOf } from "./mark.mjs";
import { isNameOf } from "../shared/names.mjs";
import { givePanel, panelOf, saveWithoutPanel } from "../shared/panel.mjs";
import { textOf } from "../preview/preview.mjs";
import { showStatus, statusOf, tellFault } from "../preview/previews.mjs";
import { recall, remember } from "./memory.mjs";
import { lazily } from "../shared/lazy.mjs";
import { whenServerIsBack } from "../shared/server.mjs";
import { tellStack } from "../stack/stack.mjs";
import { language } from "../i18n/words.mjs";

const LORA_NAME = "lora_name";
const ASK_AGAIN = 200; // milliseconds between two looks at what the host has refused
const MAX_ASKED = 300;

/**
 * How a node type shows its report: in a line, or in a box, which is so high at first and can be made so low.
 *
 * @typedef {{kind: import("./view.mjs").Body, height: number, least: number}} Box
 * @type {Record<string, Box | null>}
 */
const MANNERS = {
  LocksmithInspectLoRAKeys: { kind: "markdown", height: 320, least: 108 },
  LocksmithLoadAndFixLoRA: null,
  LocksmithLoRAStack: null,
  LocksmithCreateHookLoRA: null, // these two tell of faults alone
  LocksmithCreateHookLoRAStack: null,
  LocksmithApplyLoRA: null,
  LocksmithMergeLoRAs: { kind: "markdown", height: 320, least: 108 },
  LocksmithExtractLoRA: { kind: "text", height: 190, least: 86 },
  LocksmithSaveLoRA: { kind: "text", height: 190, least: 86 }, // its verdict holds the path of a file
  LocksmithRepairedLoRAPath: { kind: "text", height: 190, least: 86 },
};

/** @type {() => Promise<typeof import("./view.mjs")>} */
const loadBox = lazily("./view.mjs", import.meta.url);
/** @type {() => Promise<typeof import("./in_words.mjs")>} */
const loadWords = lazily("./in_words.mjs", import.meta.url);
/** @type {typeof import("./view.mjs").ReportView | undefined} */
let ReportBox;

/** @param {any} node */
function isReporting(node) {
  return node?.comfyClass in MANNERS;
}

/**
 * What a node shows of its last run.
 *
 * @param {any} node
 * @returns {any} a ReportView or a StatusView
 */
function reportOf(node) {
  const view = panelOf(node)?.view;
  return view?.isReport ? view : undefined;
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
  const text = output?.text?.[0];
  if (!isReporting(node) || typeof text !== "string" || standingFaults().has(node)) return false;
  const file = fileToldOf(node, output);
  if (file === null) return false;
  const box = MANNERS[node.comfyClass];
  if (!box) {
    const view = statusOf(node);
    if (view.text !== text || view.file !== file) view.showRun(output, node.title, file);
    showStatus(node, view);
  } else if (ReportBox) {
    const view = reportOf(node) ?? new ReportBox(box.kind);
    if (view.text !== text || view.file !== file) view.show(output, node.title, file);
    givePanel(node).show(view, box.height, box.least);
  } else void loadBox().then((found) => showLater(found, node, output), () => {}); // it is shown after the next run, or a reload
  tellStack(node, output);
  return true;
}

/**
 * @param {typeof import("./view.mjs")} found
 * @param {any} node
 * @param {any} output
 */
function showLater({ ReportView }, node, output) {
  ReportBox = ReportView;
  if (node.graph && !reportOf(node)) show(node, output);
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
  const isBare = (/** @type {string} */ place) => isReporting(nodeAt(String(place))) && !reportOf(nodeAt(String(place)));
  if (detail.nodes?.some(isBare)) void restore();
}

/** @param {CustomEvent<any>} event */
function onExecutionError({ detail }) {
  const place = String(detail.node_id);
  const node = nodeAt(place);
  if (!isReporting(node) || node.comfyClass !== detail.node_type) return;
  void note(place, [String(detail.exception_message || detail.exception_type).trim()]);
  showFaults();
}

/**
 * @param {string} place
 * @param {string[]} messages
 */
async function note(place, messages) {
  noteFault(place, messages.join("\n"));
  if (language() === "en") return;
  await translateFault(place, async (text) => (await loadWords().catch(() => undefined))?.inWords(messages) ?? text);
  showFaults();
}

/** Show on the nodes that failed why they did, and no more on those that were changed since. */
function showFaults() {
  const faults = standingFaults();
  for (const node of allNodes()) if (isReporting(node)) tellFault(node, faults.get(node) ?? "");
}

let asking = 0;

/** The host tells of no event when the server refuses a workflow, only what is wrong with which node. */
function onQueueing() {
  clearInterval(asking);
  let asked = 0;
  asking = window.setInterval(() => {
    if (tellRefused() || (asked += 1) > MAX_ASKED) clearInterval(asking);
  }, ASK_AGAIN);
}

/** A workflow of which the server takes a part is queued, though something is wrong with the rest. */
function onQueued() {
  clearInterval(asking);
  tellRefused();
}

/** @returns {boolean} whether the server has refused any node */
function tellRefused() {
  const errors = /** @type {any} */ (app).lastNodeErrors;
  for (const [place, { errors: faults }] of /** @type {[string, any][]} */ (Object.entries(errors ?? {}))) {
    if (isReporting(nodeAt(place))) void note(place, [...new Set(/** @type {string[]} */ (faults.map(sentenceOf)))]);
  }
  if (errors) showFaults();
  return Boolean(errors);
}

/**
 * What a node's own check says, before which the host puts the name of the input, and which it tells once for each.
 *
 * @param {any} fault as the host tells it
 * @returns {string}
 */
function sentenceOf({ details, message, extra_info: about }) {
  const start = `${about?.input_name} - `;
  return details?.startsWith(start) ? details.slice(start.length) : [message, details].filter(Boolean).join(": ");
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
      api.addEventListener("promptQueued", onQueued);
      api.addEventListener("graphChanged", showFaults);
      whenServerIsBack(() => void restore());
      await adoptStyle("./report.css", import.meta.url);
    },

    /** @param {any} node */
    nodeCreated(node) {
      if (!isReporting(node)) return;
      saveWithoutPanel(node);
      drawMark(node, () => markOf(panelOf(node)?.view));
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
