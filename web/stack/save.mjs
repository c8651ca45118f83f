/** Has a merge saved as a file: adds the node that does it, wired. */

import { app } from "../../../scripts/app.js";
import { adoptStyle, make, makeButton } from "../shared/dom.mjs";
import { widgetOf } from "../shared/graph.mjs";
import { say } from "../i18n/words.mjs";
import "../i18n/more.mjs";

const SAVE = "LocksmithSaveLoRA";
const LORA = "lora"; // the merge's output, and the input that takes it
const WITH = ["model", "clip"]; // which make the file's names exact
const USUAL = "locksmith/merged";
const [GAP, TITLE] = [40, 30];

await adoptStyle("./save.css", import.meta.url); // the button is never seen without its look

/** @param {import("./stack.mjs").Stack} stack of a merge */
export function offerToSave({ node, view: { add } }) {
  const act = () => app.canvas.selectItems([saverOf(node) ?? addSaver(node)]);
  const save = makeButton("locksmith-stack-button", say("stackSave"), act);
  save.title = say("stackSaveHint");
  const foot = make("div", "locksmith-stack-foot");
  add.replaceWith(foot);
  foot.append(add, save);
}

/**
 * @param {any} node
 * @returns {any} the node that saves what it gives; undefined where none does
 */
function saverOf(node) {
  const fed = node.getOutputNodes(node.findOutputSlot(LORA)) ?? [];
  return fed.find((/** @type {any} */ each) => each.type === SAVE);
}

/** @param {any} node */
function addSaver(node) {
  const saver = /** @type {any} */ (globalThis).LiteGraph.createNode(SAVE);
  app.canvas.emitBeforeChange(); // one step to undo
  saver.pos = freePlace(node, saver.size);
  node.graph.add(saver);
  widgetOf(saver, "filename").value = USUAL;
  node.connect(node.findOutputSlot(LORA), saver, saver.findInputSlot(LORA));
  for (const name of WITH) {
    const link = node.getInputLink(node.findInputSlot(name));
    node.graph.getNodeById(link?.origin_id)?.connect(link.origin_slot, saver, saver.findInputSlot(name));
  }
  app.canvas.emitAfterChange();
  return saver;
}

/**
 * The highest place at the right of a node that no other takes.
 *
 * @param {any} node
 * @param {[number, number]} size
 * @returns {[number, number]}
 */
function freePlace(node, [width, height]) {
  const left = node.pos[0] + node.size[0] + GAP;
  let top = node.pos[1];
  const isHit = (/** @type {any} */ { pos, size }) => {
    const beside = pos[0] < left + width && left < pos[0] + size[0];
    return beside && pos[1] - TITLE < top + height && top - TITLE < pos[1] + size[1];
  };
  let hit;
  while ((hit = node.graph.nodes.find(isHit))) top = hit.pos[1] + hit.size[1] + GAP + TITLE;
  return [left, top];
}
