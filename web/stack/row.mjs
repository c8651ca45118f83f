/** One row of a stack: on or off, which file, whether it fits, how strong, and where it stands. */

import { make, makeButton } from "../shared/dom.mjs";
import { aboutFile, fitOf } from "../preview/fit.mjs";
import { StrengthField } from "./field.mjs";
import { folderAndTitle, withBlocks, withClip } from "./rows.mjs";
import { say } from "../i18n/words.mjs";

/** @typedef {import("./rows.mjs").Row} Row */

/**
 * What a row asks of its stack. `change` takes the row's new state, and whether a person is done with it.
 *
 * @typedef {object} Orders
 * @property {(index: number, row: Row, isDone: boolean) => void} change
 * @property {(index: number) => void} remove
 * @property {(index: number, anchor: Element) => void} choose
 * @property {(index: number, place: {x: number, y: number, top?: number}) => void} offer what can be done with a row
 * @property {() => void} settle
 */

export class StackRow {
  /**
   * @param {number} index
   * @param {Orders} orders
   */
  constructor(index, orders) {
    this.index = index;
    this.orders = orders;
    this.row = /** @type {Row} */ ({ on: true, name: "", strength: 1 });
    this.advised = /** @type {{value: number, file: string} | null} */ (null);
    this.advise = /** @type {(() => void) | undefined} */ (undefined); // once there is something to advise
    this.handle = makeButton("locksmith-stack-handle", "\u2807", () => {});
    this.toggle = makeButton("locksmith-stack-switch", "", () => orders.change(this.index, { ...this.row, on: !this.row.on }, true));
    this.toggle.setAttribute("role", "switch");
    this.name = makeButton("locksmith-stack-name", "", () => orders.choose(this.index, this.name));
    this.name.setAttribute("aria-haspopup", "dialog");
    this.sign = make("span", "");
    this.count = make("span", "locksmith-stack-fit-count");
    this.fit = make("span", "locksmith-stack-fit", this.sign, this.count);
    this.fit.setAttribute("role", "img");
    this.fit.hidden = true; // until something is known
    const change = (/** @type {Row} */ row) => orders.change(this.index, row, false);
    this.strength = new StrengthField("locksmith-stack-model", (strength) => change({ ...this.row, strength }), orders.settle);
    this.clip = new StrengthField("locksmith-stack-clip", (strength) => change(withClip(this.row, strength)), orders.settle);
    this.more = makeButton("locksmith-stack-more", "\u22ef", () => {
      const { left, top, bottom } = this.more.getBoundingClientRect();
      orders.offer(this.index, { x: left, y: bottom, top });
    });
    this.more.setAttribute("aria-haspopup", "menu");
    this.more.setAttribute("aria-expanded", "false");
    this.cross = makeButton("locksmith-stack-remove", "\u2715", () => orders.remove(this.index));
    this.blocks = make("input", "locksmith-stack-blocks");
    this.blocks.autocomplete = "off";
    this.blocks.spellcheck = false;
    this.blocks.addEventListener("change", () => orders.change(this.index, withBlocks(this.row, this.blocks.value), true));
    const fields = [this.strength.element, this.clip.element, this.blocks];
    this.element = make("li", "locksmith-stack-row", this.handle, this.toggle, this.name, this.fit, ...fields, this.more, this.cross);
  }

  /**
   * @param {Row} row
   * @param {boolean} withClipStrengths whether the text encoder's is shown even where it is no other
   * @param {boolean} withBlockWeights whether weights for parts of the LoRA are shown
   */
  show(row, withClipStrengths, withBlockWeights) {
    if (row.name !== this.row.name) this.advised = null;
    this.row = row;
    const [folder, title] = folderAndTitle(row.name);
    this.element.classList.toggle("locksmith-stack-off", !row.on);
    this.element.setAttribute("aria-label", title);
    this.name.textContent = title || say("stackChoose");
    this.toggle.setAttribute("aria-checked", `${row.on}`);
    tell(this.name, say("stackFile", { file: row.name }), folder + title);
    tell(this.toggle, say("stackUse", { file: title }), say(row.on ? "stackTurnOff" : "stackTurnOn"));
    tell(this.handle, say("stackMove", { file: title }), say("stackMoveHint"));
    tell(this.more, say("menuOf", { file: title }), say("menuHint"));
    tell(this.cross, say("stackRemove", { file: title }), say("stackRemoveHint"));
    this.strength.show(row.strength, say(withClipStrengths ? "stackStrengthModel" : "stackStrength", { file: title }));
    this.blocks.hidden = !withBlockWeights;
    this.blocks.value = row.blocks ?? "";
    this.blocks.placeholder = say("stackBlocks");
    tell(this.blocks, say("stackBlocksOf", { file: title }), row.blocks || say("stackBlocksHint"));
    this.clip.element.hidden = !withClipStrengths;
    this.clip.show(row.strength_clip ?? row.strength, say("stackStrengthClip", { file: title }));
    this.advise?.();
  }

  /**
   * Show what is known of the row's file.
   *
   * @param {any} answer of the route "file"; undefined while it is on its way, null where the file is not there
   * @param {string[]} [cautions] what a run has found doubtful about the file
   */
  showFit(answer, cautions) {
    const { state, text, words } = fitOf(answer, cautions);
    this.fit.className = `locksmith-stack-fit ${state ? `locksmith-${state}` : ""}`;
    const cut = state ? text.indexOf(" ") : 0; // behind the sign, which is left where there is no room for more
    this.sign.textContent = text.slice(0, cut);
    this.count.textContent = text.slice(cut);
    const hint = [words, answer && aboutFile(answer)].filter(Boolean).join("\n");
    tell(this.fit, hint || text, hint);
    this.fit.hidden = !text;
    this.advised = answer?.advised;
    this.advise?.();
  }
}

/**
 * @param {HTMLElement} part
 * @param {string} label for people who hear the page
 * @param {string} hint for those who point at it
 */
function tell(part, label, hint) {
  part.setAttribute("aria-label", label);
  part.title = hint;
}
