/** How the library tells of a file in words and marks. */

import { make, makeButton } from "../shared/dom.mjs";
import { UNTOLD } from "./rows.mjs";
import { say } from "../i18n/words.mjs";
import "../i18n/more.mjs";

/** @typedef {import("./rows.mjs").Row} Row */

/** A sign for each state, because colours alone do not tell everyone. */
const SIGNS = { good: "✓", mended: "+", partly: "!", doubtful: "~", untold: "?", pickled: "P", bad: "✕", unreadable: "–" };
/** @type {Record<import("./rows.mjs").State, string>} */
const WORDS = {
  good: "libraryLoads", mended: "libraryFixed", partly: "libraryPartly", doubtful: "libraryDoubtful", bad: "libraryNothing",
  untold: "libraryUnknownModel", pickled: "libraryPickled", unreadable: "libraryUnreadable",
}; // prettier-ignore
/** What the legend calls a state, and what that means. @type {Record<string, [string, string]>} */
const LEGEND = {
  problem: ["libraryProblem", "libraryProblemHint"], good: ["legendGood", "legendGoodHint"], mended: ["legendMended", "legendMendedHint"],
  partly: ["legendPartly", "legendPartlyHint"], doubtful: ["legendDoubtful", "legendDoubtfulHint"],
  untold: ["legendUntold", "legendUntoldHint"], pickled: ["libraryPickled", "legendPickledHint"], bad: ["legendBad", "legendBadHint"],
  unreadable: ["libraryUnreadable", "legendUnreadableHint"],
}; // prettier-ignore
const UNITS = ["B", "KB", "MB", "GB", "TB"];

/** @param {string} state */
export function makeMark(state) {
  const mark = make("span", "shelf-mark");
  paintMark(mark, state);
  return mark;
}

/**
 * @param {HTMLElement} mark
 * @param {string} state
 */
export function paintMark(mark, state) {
  mark.dataset.state = state;
  mark.textContent = SIGNS[/** @type {keyof typeof SIGNS} */ (state)];
  mark.setAttribute("aria-hidden", "true"); // the words beside it say it
}

/**
 * What loads of a file, in a few words.
 *
 * @param {Row} row
 */
export function tellState(row) {
  const { state, placed, total, stock } = row;
  if (state === "bad" && !total) return say("libraryNone");
  return say(placed && stock < placed ? "libraryMended" : WORDS[state], { placed, total, stock });
}

/** @param {string} text of a model, trainer or kind */
export function tellUntold(text) {
  return text === UNTOLD ? say("libraryUntold") : text;
}

/** @param {string} state as the legend has it */
export function tellChoice(state) {
  return say(LEGEND[state][0]);
}

/** @param {string} state */
export function explainState(state) {
  return say(LEGEND[state][1]);
}

/** @param {string} text of a model, trainer or kind; a row is blank where that is not known */
export function orBlank(text) {
  return text === UNTOLD ? "" : text;
}

/** @param {number} bytes */
export function tellSize(bytes) {
  let unit = 0;
  for (; bytes >= 1024 && unit < UNITS.length - 1; unit += 1) bytes /= 1024;
  return `${bytes < 10 && unit ? bytes.toFixed(1) : Math.round(bytes)} ${UNITS[unit]}`;
}

/**
 * A button that shows an icon.
 *
 * @param {string} icon
 * @param {string} label for people who hear the page, and as a hint
 * @param {() => void} act
 */
export function makeIcon(icon, label, act) {
  const button = makeButton("shelf-icon", "", act);
  dressIcon(button, icon, label);
  return button;
}

/**
 * @param {HTMLButtonElement} button
 * @param {string} icon
 * @param {string} label
 */
export function dressIcon(button, icon, label) {
  button.replaceChildren(make("i", `pi ${icon}`));
  button.title = label;
  button.setAttribute("aria-label", label);
}
