/** What can be done with a row of a stack, in a menu. */

import { app } from "../../../scripts/app.js";
import { copyText } from "../shared/dom.mjs";
import { ask, Refusal } from "../shared/server.mjs";
import { showInLibrary } from "../library/library.mjs";
import { wiringOf } from "../preview/preview.mjs";
import { openFileDetails } from "../report/file_details.mjs";
import { offerLayerPresets } from "./layer_presets.mjs";
import { openMenu } from "./menu.mjs";
import { folderAndTitle, moved, withBlocks } from "./rows.mjs";
import { say } from "../i18n/words.mjs";
import "../i18n/more.mjs";

export { offerForLoader } from "./layer_presets.mjs";

/** @typedef {import("./stack.mjs").Stack} Stack */

const LIFE = 4000; // milliseconds a message stays

/**
 * @param {Stack} stack
 * @param {number} index of the row
 * @param {{x: number, y: number, top?: number}} place
 * @param {HTMLElement} home
 */
export function openRowMenu(stack, index, place, home) {
  const [, title] = folderAndTitle(stack.list[index].name);
  const layers = stack.view.blocks ? ofLayers(stack, index, place, home) : [];
  const remove = { text: say("stackRemoveHint"), act: () => stack.remove(index) };
  openMenu(place, home, say("menuOf", { file: title }), [...ofFile(stack, index), null, ...ofPlace(stack, index), ...layers, null, remove]);
}

/**
 * @param {Stack} stack
 * @param {number} index
 * @param {{x: number, y: number, top?: number}} place
 * @param {HTMLElement} home
 * @returns {import("./menu.mjs").Entry[]}
 */
function ofLayers(stack, index, place, home) {
  const row = stack.list[index];
  const choose = (/** @type {string} */ text) => {
    const isIt = (/** @type {number} */ at) => at === index && stack.list[at].name === row.name;
    stack.set(stack.list.map((each, at) => (isIt(at) ? withBlocks(each, text) : each)), true);
    stack.view.focus(index, "locksmith-stack-blocks");
  };
  const offer = () => void offerLayerPresets(stack.fileOf(index), row.blocks ?? "", place, home, choose);
  return [
    { text: say("menuLayers"), act: () => typeLayers(stack, index) },
    { text: say("menuPresets"), act: offer, ...offWithoutFile(stack, index) },
  ];
}

/**
 * Show the weights for parts of all LoRAs, and have those of one typed.
 *
 * @param {Stack} stack
 * @param {number} index
 */
function typeLayers(stack, index) {
  stack.view.showLayers = true;
  stack.show();
  stack.view.focus(index, "locksmith-stack-blocks");
}

/**
 * What is about the file: nothing of it can be done with one that is not there.
 *
 * @param {Stack} stack
 * @param {number} index
 * @returns {import("./menu.mjs").Entry[]}
 */
function ofFile(stack, index) {
  const file = stack.fileOf(index);
  const off = offWithoutFile(stack, index);
  return [
    { text: say("panelDetails"), act: () => void told(openFileDetails(file, wiringOf(stack.node), stack.list[index].blocks)), ...off },
    { text: say("menuCopyWords"), act: () => void told(copyWords(file)), ...off },
    { text: say("menuLibrary"), act: () => showInLibrary(file), ...off },
  ];
}

/**
 * @param {Stack} stack
 * @param {number} index
 */
function offWithoutFile(stack, index) {
  const hint = say(stack.isConnected(index) ? "menuConnected" : "stackMissingHint");
  return stack.fileOf(index) ? {} : { isOff: true, hint };
}

/**
 * @param {Stack} stack
 * @param {number} index
 * @returns {import("./menu.mjs").Entry[]}
 */
function ofPlace(stack, index) {
  const { list } = stack;
  const move = (/** @type {number} */ to) => () => {
    stack.set(moved(list, index, to), true);
    stack.view.focus(to, "locksmith-stack-more");
  };
  const duplicate = () => {
    stack.set([...list.slice(0, index + 1), { ...list[index] }, ...list.slice(index + 1)], true);
    stack.view.focus(index + 1, "locksmith-stack-more");
  };
  return [
    { text: say("menuDuplicate"), act: duplicate },
    { text: say("menuUp"), act: move(index - 1), isOff: index === 0 },
    { text: say("menuDown"), act: move(index + 1), isOff: index === list.length - 1 },
  ];
}

/** @param {string} file */
async function copyWords(file) {
  const { words_to_use: words } = await ask("file", { name: file, full: 1 });
  if (!words.length) return tell("info", say("menuNoWords"), file);
  const text = words.join(", ");
  const copied = await copyText(text, document.body);
  tell(copied ? "success" : "warn", say(copied ? "copied" : "notCopied"), text);
}

/**
 * Say why something could not be done.
 *
 * @param {Promise<void>} done
 */
async function told(done) {
  try {
    await done;
  } catch (fault) {
    if (!(fault instanceof Refusal)) throw fault;
    tell("warn", say("menuNotDone"), fault.message);
  }
}

/**
 * @param {"info" | "success" | "warn"} severity
 * @param {string} summary
 * @param {string} detail
 */
function tell(severity, summary, detail) {
  app.extensionManager.toast.add({ severity, summary, detail, life: LIFE });
}
