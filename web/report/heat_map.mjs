/** Shows which layers a file trains, block by block, as tables that can be seen at a glance and read out. */

import { make } from "../shared/dom.mjs";
import { say, tell } from "../i18n/words.mjs";
import "../i18n/more.mjs";

/** How an untrained layer, one trained in part and a trained one look: class and sign; the marks are the report's. */
const MARKS = /** @type {Record<string, [string, string]>} */ ({
  0: ["locksmith-none", "\u00b7"],
  1: ["locksmith-some", "\u25e7"],
  2: ["locksmith-all", "\u25a0"],
});
const MAX_CELLS = 20_000;
const FACTS = 3; // cells of a row before those of its blocks
const LIGHTEST = 45; // percent of the shade that the lowest rank has
/** Down and right, in cells. @type {Record<string, [number, number]>} */
const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

/**
 * @typedef {{name: string, words?: string, trained: string, ranks: number[]}} Kind words: in a report that knows some
 * @typedef {{name: string, count: number, kinds: Kind[]}} Blocks
 * @typedef {{component: string, title: string, modules: number, blocks: Blocks[]}} Network
 * @typedef {Record<string, Record<string, number>>} LayerWeights by network and layer: what its strength is multiplied with, if not 1
 */

/**
 * A table for each group of blocks of each network a file touches.
 *
 * @param {Network[]} networks
 * @param {LayerWeights} weights
 * @param {import("../i18n/words.mjs").Translations} [translations]
 * @returns {DocumentFragment}
 */
export function heatMaps(networks, weights, translations) {
  const fragment = document.createDocumentFragment();
  const most = mostOf(networks);
  fragment.append(legendOf(most, Object.keys(weights).length > 0));
  const cells = makeCells();
  let left = MAX_CELLS;
  for (const { component, title, modules, blocks } of networks) {
    fragment.append(make("h4", "", say("heatNetwork", { title, modules })));
    for (const group of blocks.map(trainedOf).filter(({ kinds }) => kinds.length)) {
      left -= group.kinds.length * Math.max(group.count, 1);
      if (left >= 0) fragment.append(...readable(group, tableOf(group, { cells, most, weights: weights[component] ?? {}, translations })));
    }
  }
  return fragment;
}

/**
 * The group with the rows that tell something: none where nothing in it is trained, and outside of blocks only what is.
 *
 * @param {Blocks} group
 * @returns {Blocks}
 */
function trainedOf({ name, count, kinds }) {
  const trained = kinds.filter((kind) => /[^0]/.test(kind.trained));
  return { name, count, kinds: count && trained.length ? kinds : trained };
}

/** @returns {Record<string, HTMLElement>} a cell for each mark, to be copied */
function makeCells() {
  return Object.fromEntries(
    Object.entries(MARKS).map(([mark, [name, sign]]) => {
      const cell = make("td", name, sign);
      cell.setAttribute("aria-label", wordOf(mark));
      return [mark, cell];
    })
  );
}

/** @param {string} mark */
function wordOf(mark) {
  return say({ 1: "heatPart", 2: "heatAll" }[mark] ?? "heatNone");
}

/**
 * The highest rank, where there are several to be told apart; else 0.
 *
 * @param {Network[]} networks
 */
function mostOf(networks) {
  const ranks = new Set(networks.flatMap(({ blocks }) => blocks.flatMap(({ kinds }) => kinds.flatMap(topOf))));
  return ranks.size > 1 ? Math.max(...ranks) : 0;
}

/**
 * @param {Kind} kind
 * @returns {number[]} the highest rank of a kind, if it has any
 */
function topOf({ ranks }) {
  return ranks.length ? [Math.max(...ranks)] : [];
}

/**
 * @param {number} most see `mostOf`
 * @param {boolean} isWeighted whether there are layer weights
 */
function legendOf(most, isWeighted) {
  const words = /** @type {[string, string][]} */ ([["2", say("heatTrained")], ["1", say("heatPart")], ["0", say("heatUntrained")]]);
  const parts = words.map(([mark, word]) => {
    const [name, sign] = MARKS[mark];
    const sample = make("span", name, sign);
    sample.ariaHidden = "true";
    return make("span", "", sample, word);
  });
  if (most) parts.push(make("span", "", say("heatShade", { most })));
  if (isWeighted) parts.push(make("span", "", make("span", MARKS[2][0], ".5"), say("heatWeight")));
  return make("p", "locksmith-legend-heat", ...parts);
}

/**
 * @param {Blocks} group
 * @param {{cells: Record<string, HTMLElement>, most: number, weights: Record<string, number>,
 *   translations: import("../i18n/words.mjs").Translations}} drawn
 */
function tableOf({ name, count, kinds }, { cells, most, weights, translations }) {
  const columns = Array.from({ length: count }, (_, block) => heading("col", String(block)));
  const head = make("tr", "", ...[say("heatLayer"), say("heatRank"), say("heatBlocks")].map((word) => heading("col", word)), ...columns);
  const rows = kinds.map((kind) => {
    const row = make("tr", "", layerHead(kind, translations), make("td", "", kind.ranks.join(", ")), make("td", "", blocksOf(kind.trained)));
    const [top] = topOf(kind);
    if (most && top) row.style.setProperty("--locksmith-shade", `${Math.round(LIGHTEST + (100 - LIGHTEST) * (top / most))}%`);
    for (const mark of count ? kind.trained : "") row.append((cells[mark] ?? cells[0]).cloneNode(true));
    [...row.cells].slice(FACTS).forEach((cell, block) => weigh(cell, weights[layerAt(name, block, kind)]));
    return row;
  });
  const table = make("table", "locksmith-heat", make("caption", "", name || say("heatOutside")));
  table.append(make("thead", "", head), make("tbody", "", ...rows));
  return table;
}

/**
 * @param {string} name of the blocks
 * @param {number} block
 * @param {Kind} kind
 */
function layerAt(name, block, kind) {
  return `${name}.${block}.${kind.name}`;
}

/**
 * The number of a layer weight in place of the mark.
 *
 * @param {HTMLTableCellElement} cell
 * @param {number | undefined} weight
 */
function weigh(cell, weight) {
  if (weight === undefined) return;
  cell.textContent = String(Number(weight.toFixed(2))).replace("0.", ".");
  cell.ariaLabel = say("heatWeighted", { state: cell.ariaLabel ?? "", weight });
  cell.dataset.weight = String(weight);
  cell.classList.toggle("locksmith-off", weight === 0);
}

/**
 * @param {Kind} kind
 * @param {import("../i18n/words.mjs").Translations} translations
 */
function layerHead({ name, words }, translations) {
  const head = heading("row", words ? tell(words, translations) : "");
  head.append(...(words ? [" "] : []), make("code", "", name));
  return head;
}

/**
 * The table, which scrolls, and below it a line that tells of the cell under the pointer or, by arrow keys, in focus.
 *
 * @param {Blocks} group
 * @param {HTMLTableElement} table
 * @returns {HTMLElement[]}
 */
function readable(group, table) {
  const box = scrolled(table);
  if (!group.count) return [box];
  const line = make("output", "locksmith-heat-line", say("heatHint"));
  const show = (/** @type {EventTarget | null} */ target) => {
    const cell = target instanceof Element ? target.closest("td") : null;
    const place = cell && placeOf(cell);
    if (place) line.textContent = cellText(group, place, cell);
  };
  table.addEventListener("pointerover", ({ target }) => show(target));
  table.addEventListener("focusin", ({ target }) => show(target));
  table.addEventListener("keydown", moveFocus);
  const first = cellAt(table, { row: 0, block: 0 });
  if (first) first.tabIndex = 0;
  return [box, line];
}

/**
 * @param {HTMLTableCellElement} cell
 * @returns {{row: number, block: number} | null}
 */
function placeOf(cell) {
  const { parentElement: row, cellIndex } = cell;
  if (!(row instanceof HTMLTableRowElement) || cellIndex < FACTS) return null;
  return { row: row.sectionRowIndex, block: cellIndex - FACTS };
}

/**
 * @param {HTMLTableElement} table
 * @param {{row: number, block: number}} place
 * @returns {HTMLTableCellElement | undefined}
 */
function cellAt(table, { row, block }) {
  return block < 0 ? undefined : table.tBodies[0].rows[row]?.cells[block + FACTS];
}

/**
 * @param {Blocks} group
 * @param {{row: number, block: number}} place
 * @param {HTMLTableCellElement} cell
 */
function cellText({ name, kinds }, { row, block }, cell) {
  const kind = kinds[row];
  const mark = kind.trained[block];
  const rank = mark === "0" ? "" : kind.ranks.join(", ");
  const told = { module: layerAt(name, block, kind), state: say({ 1: "heatPart", 2: "heatTrained" }[mark] ?? "heatUntrained"), rank };
  const text = say(rank ? "heatCellRank" : "heatCell", told);
  return cell.dataset.weight ? say("heatWeighted", { state: text, weight: cell.dataset.weight }) : text;
}

/** Arrow keys go from cell to cell; one of them at a time is reached by Tab. @param {KeyboardEvent} event */
function moveFocus(event) {
  const { target, key, currentTarget: table } = event;
  const [down, right] = STEPS[key] ?? [0, 0];
  const place = target instanceof HTMLTableCellElement ? placeOf(target) : null;
  if (!place || !(down || right) || !(target instanceof HTMLElement) || !(table instanceof HTMLTableElement)) return;
  event.preventDefault();
  const next = cellAt(table, { row: place.row + down, block: place.block + right });
  if (!next) return;
  target.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

/**
 * Which blocks a string of marks stands for: "all", "0-5, 8", "none".
 *
 * @param {string} marks
 */
function blocksOf(marks) {
  if (!/[^0]/.test(marks)) return say("heatNone");
  if (!marks.includes("0")) return say(marks.includes("1") ? "heatPart" : "heatAll");
  return [...marks.matchAll(/[^0]+/g)]
    .map(({ 0: { length }, index }) => (length === 1 ? `${index}` : `${index}-${index + length - 1}`))
    .join(", ");
}

/**
 * @param {"col" | "row"} scope
 * @param {string} text
 */
function heading(scope, text) {
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
