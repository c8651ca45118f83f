/** How the library tells of a file in words and marks. */

import { make, makeButton } from "../shared/dom.mjs";
import { STATES, UNTOLD } from "./rows.mjs";
import { say } from "../i18n/words.mjs";
import "../i18n/more.mjs";

/** @typedef {import("./rows.mjs").Row} Row */

/** A sign for each state, because colours alone do not tell everyone. */
const SIGNS = { good: "✓", mended: "✓", partly: "!", doubtful: "!", untold: "?", pickled: "?", bad: "✕", unreadable: "✕" };
/** @type {Record<import("./rows.mjs").State, string>} */
const WORDS = {
  good: "libraryLoads", mended: "libraryFixed", partly: "libraryPartly", doubtful: "libraryDoubtful", bad: "libraryNothing",
  untold: "libraryUnknownModel", pickled: "libraryPickled", unreadable: "libraryUnreadable",
}; // prettier-ignore
const STATE_WORDS = { stock: "libraryStock", problem: "libraryProblem", unreadable: "libraryUnreadable" };
const UNITS = ["B", "KB", "MB", "GB", "TB"];

/** @param {Row} row */
export function makeMark(row) {
  const mark = make("span", "shelf-mark");
  paintMark(mark, row);
  return mark;
}

/**
 * @param {HTMLElement} mark
 * @param {Row} row
 */
export function paintMark(mark, row) {
  mark.dataset.state = row.state;
  mark.textContent = SIGNS[row.state];
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

/** @param {string} value of a filter */
export function tellChoice(value) {
  return STATES.includes(value) ? say(STATE_WORDS[/** @type {keyof typeof STATE_WORDS} */ (value)]) : tellUntold(value);
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
