/** Begins a comparison: with a file that is still to be chosen, or of two. Its code is loaded when it is first wanted. */

import { lazily } from "../shared/lazy.mjs";
import { tellAway } from "../shared/server.mjs";
import { listedFiles } from "../stack/stack.mjs";
import { say } from "../i18n/words.mjs";
import "../i18n/more.mjs";

const load = /** @type {() => Promise<typeof import("./compare.mjs")>} */ (lazily("./compare.mjs", import.meta.url));
const loadChooser = /** @type {() => Promise<typeof import("../stack/chooser.mjs")>} */ (
  lazily("../stack/chooser.mjs", import.meta.url)
);

/**
 * Have a person choose what a file is compared with.
 *
 * @param {HTMLElement} anchor the list opens beside it
 * @param {string} file as the loras folders list it
 */
export async function chooseOther(anchor, file) {
  try {
    const { openChooser } = await loadChooser();
    const label = say("compareWhat", { file });
    const choose = (/** @type {string} */ other) => void compare(file, other);
    const others = listedFiles().filter((one) => one !== file);
    const none = { connected: [], current: "", taken: /** @type {Set<string>} */ (new Set()), model: null };
    openChooser(anchor, { ...none, label, files: others, choose, isSingle: true });
  } catch (fault) {
    tellAway(say("compareWith"), fault);
  }
}

/**
 * Show what two files have in common.
 *
 * @param {string} file as the loras folders list it
 * @param {string} other
 */
export async function compare(file, other) {
  try {
    await (await load()).openComparison(file, other);
  } catch (fault) {
    tellAway(say("compare"), fault);
  }
}
