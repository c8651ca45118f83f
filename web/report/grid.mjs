/** Tables of blocks and kinds of layers; a line below them tells of the cell under the pointer or, by arrow keys, in focus. */

import { adoptStyle, make } from "../shared/dom.mjs";
import { say, tell } from "../i18n/words.mjs";
import "../i18n/more.mjs";

await adoptStyle("./grid.css", import.meta.url);

/** Down and right, in cells. @type {Record<string, [number, number]>} */
const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
/** Percent of a shade from which white stands out on it in light themes, where black does not any more: blue, orange. */
const DEEP = [73, 78];
const SAMPLES = 5; // of a scale in a legend
const MOST_RANKS = 3; // that are listed one by one

/**
 * What a table shows: `facts` are the heads of the columns before those of the blocks, the layer's own first; `tell` says what
 * the cell of a row and block is.
 *
 * @typedef {{caption: string, facts: string[], count: number, rows: HTMLTableRowElement[],
 *   tell: (row: number, block: number) => string}} Grid
 */

/** The line, to stand below the tables that share it. */
export function makeLine() {
  return make("output", "locksmith-heat-line", say("heatHint"));
}

/**
 * @param {Grid} grid
 * @param {HTMLElement} line
 * @returns {HTMLElement} the table in a box that scrolls
 */
export function gridOf(grid, line) {
  const columns = Array.from({ length: grid.count }, (_, block) => heading("col", String(block)));
  for (const column of columns) column.className = "locksmith-block";
  const head = make("tr", "", ...grid.facts.map((word) => heading("col", word)), ...columns);
  const table = make("table", "locksmith-heat", make("caption", "", grid.caption));
  table.append(make("thead", "", head), make("tbody", "", ...grid.rows));
  if (grid.count) tellCells(grid, table, line);
  return scrolled(table);
}

/**
 * @param {Grid} grid
 * @param {HTMLTableElement} table
 * @param {HTMLElement} line
 */
function tellCells(grid, table, line) {
  const before = grid.facts.length;
  const show = (/** @type {EventTarget | null} */ target) => {
    const place = target instanceof Element ? placeOf(target.closest("td"), before) : null;
    if (place) line.textContent = grid.tell(place.row, place.block);
  };
  table.addEventListener("pointerover", ({ target }) => show(target));
  table.addEventListener("focusin", ({ target }) => show(target));
  table.addEventListener("keydown", (event) => moveFocus(event, table, before));
  const first = table.tBodies[0].rows[0]?.cells[before];
  if (first) first.tabIndex = 0;
}

/**
 * @param {HTMLTableCellElement | null} cell
 * @param {number} before cells of a row before those of its blocks
 */
function placeOf(cell, before) {
  const row = cell?.parentElement;
  if (!cell || !(row instanceof HTMLTableRowElement) || cell.cellIndex < before) return null;
  return { row: row.sectionRowIndex, block: cell.cellIndex - before };
}

/**
 * Arrow keys go from cell to cell; one of them at a time is reached by Tab.
 *
 * @param {KeyboardEvent} event
 * @param {HTMLTableElement} table
 * @param {number} before cells of a row before those of its blocks
 */
function moveFocus(event, table, before) {
  const { target, key } = event;
  const [down, right] = STEPS[key] ?? [0, 0];
  const place = target instanceof HTMLTableCellElement ? placeOf(target, before) : null;
  if (!place || !(down || right) || !(target instanceof HTMLElement)) return;
  event.preventDefault();
  const block = place.block + right;
  const next = block < 0 ? undefined : table.tBodies[0].rows[place.row + down]?.cells[block + before];
  if (!next) return;
  target.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

/**
 * @param {string} name
 * @param {string} words in a report that knows some
 * @param {import("../i18n/words.mjs").Translations} translations
 */
export function layerHead(name, words, translations) {
  const head = heading("row", words ? tell(words, translations) : "");
  head.append(...(words ? [" "] : []), make("code", "", name));
  return head;
}

/**
 * All ranks of a kind of layer; of many the lowest and the highest.
 *
 * @param {number[]} ranks
 */
export function tellRanks(ranks) {
  return ranks.length > MOST_RANKS ? `${Math.min(...ranks)}-${Math.max(...ranks)}` : ranks.join(", ");
}

/**
 * Color a cell: the more, the stronger.
 *
 * @template {HTMLElement} Cell
 * @param {Cell} cell
 * @param {number} share from 0 to 1
 * @param {boolean} [isAgainst] orange in place of blue
 * @returns {Cell}
 */
export function shaded(cell, share, isAgainst = false) {
  const percent = Math.round(100 * share);
  cell.classList.add(isAgainst ? "locksmith-against" : "locksmith-shaded");
  cell.classList.toggle("locksmith-deep", percent >= DEEP[Number(isAgainst)]);
  cell.style.setProperty("--locksmith-shade", `${percent}%`);
  return cell;
}

/**
 * A part of a legend: samples, and what they mean.
 *
 * @param {HTMLElement[]} samples
 * @param {string} words
 */
export function legendPart(samples, words) {
  for (const sample of samples) sample.ariaHidden = "true";
  return make("span", "", ...samples, words);
}

/**
 * Samples of all shades.
 *
 * @param {number} least the share of the first
 * @param {boolean} [isAgainst]
 */
export function scaleOf(least, isAgainst = false) {
  const shares = Array.from({ length: SAMPLES }, (_, at) => least + ((1 - least) * at) / (SAMPLES - 1));
  return make("span", "locksmith-scale", ...shares.map((share) => shaded(make("span", ""), share, isAgainst)));
}

/**
 * @param {"col" | "row"} scope
 * @param {string} text
 */
export function heading(scope, text) {
  return Object.assign(make("th", "", text), { scope });
}

/** @param {HTMLElement} wide */
function scrolled(wide) {
  const box = make("div", "locksmith-wide", wide);
  box.tabIndex = 0; // scrolls by keys
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", wide.querySelector("caption")?.textContent ?? "");
  return box;
}
