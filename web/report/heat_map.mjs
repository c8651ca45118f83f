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

/**
 * @typedef {{name: string, words?: string, trained: string, ranks: number[]}} Kind
 * @typedef {{name: string, count: number, kinds: Kind[]}} Blocks
 * @typedef {{component: string, title: string, modules: number, blocks: Blocks[]}} Network
 */

/**
 * A table for each group of blocks of each network a file touches.
 *
 * @param {Network[]} networks
 * @param {import("../i18n/words.mjs").Translations} translations of what layers are called
 * @returns {DocumentFragment}
 */
export function heatMaps(networks, translations) {
  const fragment = document.createDocumentFragment();
  const cells = makeCells();
  fragment.append(legend());
  let left = MAX_CELLS;
  for (const { title, modules, blocks } of networks) {
    fragment.append(make("h4", "", say("heatNetwork", { title, modules })));
    for (const group of blocks.map(trainedOf).filter(({ kinds }) => kinds.length)) {
      left -= group.kinds.length * Math.max(group.count, 1);
      if (left >= 0) fragment.append(scrolled(tableOf(group, cells, translations)));
    }
  }
  return fragment;
}

/** What the marks mean, once for all tables. */
function legend() {
  const words = [say("heatAllLong"), say("heatPartLong"), say("heatNoneLong")];
  const marks = [MARKS[2], MARKS[1], MARKS[0]].map(([name, sign], place) => make("span", "", make("b", name, sign), ` ${words[place]}`));
  return make("p", "locksmith-legend-of-heat locksmith-quiet", ...marks);
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
  const words = [say("heatNone"), say("heatPart"), say("heatAll")];
  return Object.fromEntries(
    Object.entries(MARKS).map(([mark, [name, sign]]) => {
      const cell = make("td", name, sign);
      cell.setAttribute("aria-label", words[Number(mark)]);
      return [mark, cell];
    })
  );
}

/**
 * @param {Blocks} group
 * @param {Record<string, HTMLElement>} cells
 * @param {import("../i18n/words.mjs").Translations} translations
 */
function tableOf(group, cells, translations) {
  const { name, count, kinds } = group;
  const columns = Array.from({ length: count }, (_, block) => heading("col", String(block)));
  const head = make("tr", "", ...[say("heatLayer"), say("heatRank"), say("heatBlocks")].map((word) => heading("col", word)), ...columns);
  const rows = kinds.map((kind) => {
    const row = make("tr", "", layerOf(kind, translations), make("td", "", kind.ranks.join(", ")), make("td", "", blocksOf(kind.trained)));
    for (const mark of count ? kind.trained : "") row.append((cells[mark] ?? cells[0]).cloneNode(true));
    return row;
  });
  const table = make("table", "locksmith-heat", make("caption", "", name || say("heatOutside")));
  table.append(make("thead", "", head), make("tbody", "", ...rows));
  table.addEventListener("pointerover", ({ target }) => tellCell(/** @type {Element} */ (target), group, translations));
  return table;
}

/** The columns in front of the blocks' own. */
const BEFORE = 3;

/**
 * A cell's tooltip, made when it is pointed at: there are thousands of them.
 *
 * @param {Element} target
 * @param {Blocks} group
 * @param {import("../i18n/words.mjs").Translations} translations
 */
function tellCell(target, { name, kinds }, translations) {
  const cell = target.closest("td");
  const kind = kinds[/** @type {HTMLTableRowElement} */ (cell?.parentElement)?.sectionRowIndex];
  if (!cell || cell.title || !kind || cell.cellIndex < BEFORE) return;
  const block = cell.cellIndex - BEFORE;
  const layer = tell(kind.words ?? "", translations);
  const ranks = kind.trained[block] === "0" ? "" : kind.ranks.join(", ");
  const lines = [`${name}.${block}.${kind.name}`, layer, cell.ariaLabel ?? "", ranks && say("heatRanks", { ranks })];
  cell.title = lines.filter(Boolean).join("\n");
}

/**
 * What a row is of: in words, and by the name it has in its block.
 *
 * @param {Kind} kind
 * @param {import("../i18n/words.mjs").Translations} translations
 */
function layerOf(kind, translations) {
  const words = tell(kind.words ?? "", translations);
  const head = heading("row", words || kind.name);
  if (words) head.append(" ", make("code", "locksmith-quiet", kind.name));
  return head;
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
