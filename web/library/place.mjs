/** Puts a file of the library on the canvas: as a new loader, or into the node it is dropped on. */

import { app } from "../../../scripts/app.js";
import { nodeById, widgetOf } from "../shared/graph.mjs";
import { addToStack } from "../stack/stack.mjs";

const LOADER = "LocksmithLoadAndFixLoRA";
const LORA_NAME = "lora_name";
const CARRIED = "application/x-lora-locksmith";
/** Where nodes are: the canvas, nodes drawn by Vue, and what lies over classic nodes. */
const CANVAS = "#graph-canvas, [data-testid=transform-pane], .dom-widget";
const STEP = 30; // pixels between loaders added one after another

/** Ends what listens for the last drag: a row that leaves the page while it is dragged never tells of the drag's end. */
let carrying = new AbortController();

/**
 * Add a loader with a file in the middle of what is seen of the canvas, as one step that can be undone.
 *
 * @param {string} file as the loras folder lists it
 */
export async function addInTheMiddle(file) {
  const area = (document.querySelector(".graph-canvas-panel") ?? app.canvas.canvas).getBoundingClientRect();
  const [x, y] = app.clientPosToCanvasPos([area.x + area.width / 2, area.y + area.height / 2]);
  await addLoader(file, (size) => freePlace(x - size[0] / 2, y - size[1] / 2));
}

/**
 * @param {string} file
 * @param {(size: [number, number]) => [number, number]} place
 */
async function addLoader(file, place) {
  const graph = app.canvas.graph;
  let node = makeLoader();
  if (node && !widgetOf(node, LORA_NAME).options.values.includes(file)) {
    await app.reloadNodeDefs().catch(() => {}); // the file is newer than the page
    node = makeLoader();
  }
  if (!node || !graph) return;
  asOneStep(() => {
    node.pos = place(node.size);
    graph.add(node);
    setFile(node, file);
    app.canvas.selectItems([node]);
  });
}

/** @returns {any} */
function makeLoader() {
  return /** @type {any} */ (globalThis).LiteGraph.createNode(LOADER);
}

/**
 * A place no node starts at.
 *
 * @param {number} x
 * @param {number} y
 * @returns {[number, number]}
 */
function freePlace(x, y) {
  const nodes = app.canvas.graph?.nodes ?? [];
  while (nodes.some(({ pos }) => Math.hypot(pos[0] - x, pos[1] - y) < STEP / 2)) [x, y] = [x + STEP, y + STEP];
  return [x, y];
}

/**
 * @param {any} node
 * @param {string} file
 */
function setFile(node, file) {
  const widget = widgetOf(node, LORA_NAME);
  widget.value = file;
  widget.callback?.(file, app.canvas, node);
}

/** @param {() => void} change */
function asOneStep(change) {
  app.canvas.emitBeforeChange();
  try {
    change();
  } finally {
    app.canvas.emitAfterChange();
  }
}

/**
 * Let a file be dropped: on a node that names a LoRA, which gets it; else beside, where a loader is added.
 *
 * @param {DragEvent} event its beginning
 * @param {string} file
 */
export function carry(event, file) {
  if (!event.dataTransfer) return;
  event.dataTransfer.effectAllowed = "copy";
  event.dataTransfer.setData(CARRIED, file);
  event.dataTransfer.setData("text/plain", file);
  carrying.abort();
  const ended = (carrying = new AbortController());
  const options = { capture: true, signal: ended.signal };
  document.addEventListener("dragover", (over) => takeOver(over), options);
  document.addEventListener("drop", (drop) => takeOver(drop) && dropAt(drop, file), options);
  document.addEventListener("dragend", () => ended.abort(), options);
}

/**
 * Whether a drag is over nodes; then it is ours, and not a workflow file for the front end.
 *
 * @param {DragEvent} event
 */
function takeOver(event) {
  if (!event.dataTransfer?.types.includes(CARRIED)) return false;
  if (!(event.target instanceof Element) || !event.target.closest(CANVAS)) return false;
  event.preventDefault();
  event.stopPropagation();
  if (event.dataTransfer) event.dataTransfer.dropEffect = "copy";
  return true;
}

/**
 * @param {DragEvent} event
 * @param {string} file
 */
function dropAt(event, file) {
  const [x, y] = app.clientPosToCanvasPos([event.clientX, event.clientY]);
  const node = nodeUnder(event) ?? app.canvas.graph?.getNodeOnPos(x, y);
  if (node && addToStack(node, file)) return;
  if (node && widgetOf(node, LORA_NAME)?.options?.values?.includes?.(file)) asOneStep(() => setFile(node, file));
  else void addLoader(file, () => [x, y]);
  app.canvas.setDirty(true, true);
}

/**
 * The node that Vue draws where something is dropped; its box goes further than what the graph knows of.
 *
 * @param {DragEvent} event
 */
function nodeUnder(event) {
  const drawn = event.target instanceof Element ? event.target.closest("[data-node-id]") : null;
  return drawn instanceof HTMLElement ? nodeById(app.canvas.graph, drawn.dataset.nodeId ?? "") : undefined;
}
