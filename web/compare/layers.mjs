/** Shows layer by layer which of two files trains it and, once their weights were measured, how alike their changes are. */

import { make } from "../shared/dom.mjs";
import { gridOf, layerHead, legendPart, makeLine, scaleOf, shaded, tellRanks } from "../report/grid.mjs";
import { placeKey, tellCosine, tellShare } from "../report/measure.mjs";
import { say } from "../i18n/words.mjs";
import "../i18n/more.mjs";

const HUNDREDTHS = 100;

/**
 * Each pair is of A and of B; `block_ranks`: where blocks differ in them.
 *
 * @typedef {{name: string, words: string, trained: [string, string], ranks: [number[], number[]],
 *   block_ranks: [number[][], number[][]]}} Kind
 * @typedef {{name: string, count: number, kinds: Kind[]}} Blocks
 * @typedef {{component: string, title: string, blocks: Blocks[]}} Network
 * @typedef {import("../report/measure.mjs").Measured} Measured
 */

/**
 * @param {Network[]} networks
 * @param {import("../i18n/words.mjs").Translations} translations
 * @param {Measured} [measured]
 * @returns {DocumentFragment}
 */
export function layerMaps(networks, translations, measured) {
  const fragment = document.createDocumentFragment();
  const line = makeLine();
  fragment.append(legendOf(measured !== undefined));
  for (const { component, title, blocks } of networks) {
    const tables = blocks.map((group) => tableOf(group, component, { translations, measured, line }));
    fragment.append(make("h4", "", title), make("div", "locksmith-grids", ...tables));
  }
  fragment.append(line);
  return fragment;
}

/** @param {boolean} isMeasured */
function legendOf(isMeasured) {
  const alone = ["A", "B"].map((side) => legendPart([sideOf(make("span", ""), side)], say("compareOnly", { side })));
  const both = isMeasured
    ? [legendPart([scaleOf(0)], say("compareAlike")), legendPart([scaleOf(0, true)], say("compareAgainst"))]
    : [legendPart([shaded(make("span", "", "AB"), 0)], say("compareBoth"))];
  return make("p", "locksmith-legend-heat", ...both, ...alone);
}

/**
 * @param {Blocks} group
 * @param {string} component
 * @param {{translations: import("../i18n/words.mjs").Translations, measured?: Measured, line: HTMLElement}} drawn
 */
function tableOf(group, component, { translations, measured, line }) {
  const { name, kinds } = group;
  const count = Math.max(group.count, 1); // what is in no block has one cell
  const changeOf = (/** @type {Kind} */ kind, /** @type {number} */ block) => {
    return measured?.layers.get(placeKey(component, name, block, kind.name));
  };
  const rows = kinds.map((kind) => {
    const cells = Array.from({ length: count }, (_, block) => cellOf(kind, block, changeOf(kind, block), measured));
    return make("tr", "", layerHead(kind.name, kind.words, translations), make("td", "", ranksOf(kind)), ...cells);
  });
  const tell = (/** @type {number} */ row, /** @type {number} */ block) => {
    const kind = kinds[row];
    const module = group.count ? `${name}.${block}.${kind.name}` : kind.name;
    return textOf(module, kind, block, measured && { measured, change: changeOf(kind, block) });
  };
  return gridOf({ caption: name || say("heatOutside"), facts: [say("heatLayer"), say("compareRanks")], count, rows, tell }, line);
}

/**
 * The ranks of A and of B; "-" where one trains nothing of it.
 *
 * @param {Kind} kind
 */
function ranksOf({ ranks }) {
  return ranks.map((each) => tellRanks(each) || "-").join(" | ");
}

/**
 * @param {Kind} kind
 * @param {number} block
 * @param {import("../report/measure.mjs").Change | undefined} change
 * @param {Measured | undefined} measured
 */
function cellOf(kind, block, change, measured) {
  const cell = make("td", "");
  const sides = sidesOf(kind, block);
  cell.ariaLabel = stateOf(sides);
  if (!sides) return Object.assign(cell, { textContent: "\u00b7", className: "locksmith-none" });
  if (sides.length < 2) return sideOf(cell, sides);
  const cosine = change?.cosine ?? undefined;
  cell.textContent = !measured ? "AB" : cosine === undefined ? "?" : String(Math.round(HUNDREDTHS * cosine) || 0);
  if (cosine !== undefined) cell.ariaLabel = say("compareCosineOf", { cosine: tellCosine(cosine) });
  return shaded(cell, Math.abs(cosine ?? 0), (cosine ?? 0) < 0);
}

/**
 * Which of the two train a layer: "A", "B", "AB" or "".
 *
 * @param {Kind} kind
 * @param {number} block
 */
function sidesOf({ trained }, block) {
  return ["A", "B"].filter((_, side) => (trained[side][block] ?? "0") !== "0").join("");
}

/** @param {string} sides */
function stateOf(sides) {
  if (!sides) return say("heatUntrained");
  return sides.length > 1 ? say("compareBoth") : say("compareOnly", { side: sides });
}

/**
 * @template {HTMLElement} Cell
 * @param {Cell} cell
 * @param {string} side
 */
function sideOf(cell, side) {
  return Object.assign(cell, { textContent: side, className: `locksmith-side-${side.toLowerCase()}` });
}

/**
 * @param {string} module
 * @param {Kind} kind
 * @param {number} block
 * @param {{measured: Measured, change: import("../report/measure.mjs").Change | undefined} | undefined} found
 */
function textOf(module, kind, block, found) {
  const sides = sidesOf(kind, block);
  const cosine = found?.change?.cosine;
  const state = typeof cosine === "number" ? say("compareCosineOf", { cosine: tellCosine(cosine) }) : stateOf(sides);
  const parts = [...sides].map((side) => sideText(side, kind, block, found));
  return [say("heatCell", { module, state }), ...parts].join(say("compareThen"));
}

/**
 * @param {string} side
 * @param {Kind} kind
 * @param {number} block
 * @param {{measured: Measured, change: import("../report/measure.mjs").Change | undefined} | undefined} found
 */
function sideText(side, { ranks, block_ranks: blockRanks, trained }, block, found) {
  const at = "AB".indexOf(side);
  const energy = at ? found?.change?.energy_b : found?.change?.energy_a;
  const all = at ? found?.measured.norm_b : found?.measured.norm_a;
  const rank = (blockRanks[at][block] ?? ranks[at]).join(", ");
  const facts = [rank && say("compareRank", { rank }), trained[at][block] === "1" ? say("heatPart") : ""];
  if (typeof energy === "number") {
    facts.push(say("compareNorm", { norm: Math.sqrt(energy).toPrecision(3), share: tellShare(energy, all ?? null) }));
  }
  return say("compareSide", { side, facts: facts.filter(Boolean).join(say("compareComma")) });
}
